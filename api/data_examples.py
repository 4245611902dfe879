"""Examples of `/datasets` for the OpenAPI document."""

from api.example import Example
from tuneyard_wire.own_data import AddedDataset, Dataset, DatasetVersion, DeletedDataset, ShownRows

DATA_EXAMPLES: dict[tuple[str, str], Example] = {
    ("POST", "/datasets"): Example("Add a dataset", response=AddedDataset.example(), errors=(400, 409, 507)),
    ("GET", "/datasets"): Example("List datasets", response=[DatasetVersion.example()], errors=(400,)),
    ("GET", "/datasets/{dataset}"): Example("Get a dataset with its versions", response=Dataset.example()),
    ("DELETE", "/datasets/{dataset}"): Example("Delete a dataset", response=DeletedDataset.example(), errors=(409,)),
    ("GET", "/datasets/{dataset}/rows"): Example(
        "Show a dataset's first rows", response=ShownRows.example(), errors=(400,)
    ),
    ("GET", "/datasets/{dataset}/content"): Example("Download a dataset's file"),
}
