"""Examples of `/datasets` for the OpenAPI document."""

from api.example import Example
from tuneyard_wire.own_data import AddedDataset, Dataset, DatasetVersion, DeletedDataset, ShownRows, Upload

DATA_EXAMPLES: dict[tuple[str, str], Example] = {
    ("POST", "/datasets"): Example("Add a dataset", response=AddedDataset.example(), errors=(400, 409, 507)),
    ("POST", "/datasets/uploads"): Example(
        "Begin an upload in parts",
        {"a file": {"filename": "data.jsonl", "bytes": 845312, "name": "support"}},
        Upload.example() | {"parts": []},
        (409, 507),
    ),
    ("GET", "/datasets/uploads/{upload_id}"): Example("Get an upload", response=Upload.example()),
    ("PUT", "/datasets/uploads/{upload_id}/parts/{number}"): Example(
        "Send a part of an upload", response=Upload.example()["parts"][0], errors=(507,)
    ),
    ("POST", "/datasets/uploads/{upload_id}/complete"): Example(
        "Complete an upload", response=AddedDataset.example(), errors=(400, 409, 507)
    ),
    ("DELETE", "/datasets/uploads/{upload_id}"): Example(
        "Delete an upload", response={"message": f"Upload {Upload.example()['upload_id']} deleted"}
    ),
    ("GET", "/datasets"): Example("List datasets", response=[DatasetVersion.example()], errors=(400,)),
    ("GET", "/datasets/{dataset}"): Example("Get a dataset with its versions", response=Dataset.example()),
    ("DELETE", "/datasets/{dataset}"): Example("Delete a dataset", response=DeletedDataset.example(), errors=(409,)),
    ("GET", "/datasets/{dataset}/rows"): Example(
        "Show a dataset's first rows", response=ShownRows.example(), errors=(400,)
    ),
    ("GET", "/datasets/{dataset}/content"): Example("Download a dataset's file"),
}
