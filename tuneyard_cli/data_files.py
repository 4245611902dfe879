"""`--dataset FILE`: a file on this machine, which is added to the service before the job is planned or submitted."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneyard_cli.problems import UsageProblem
from tuneyard_wire.dataset_reference import MARK, DatasetReference

if TYPE_CHECKING:
    from tuneyard_client import Tuneyard
    from tuneyard_wire.own_data import AddedDataset

PENDING = DatasetReference("file", "pending")  # stands for the version that the file will be
AUTO = "auto"
_DATA_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".gz", ".zst")
_SAID = ("model_name", "base_model", "dataset_name", "dataset_version")  # already known from the command


def find_file(dataset: object) -> Path | None:
    """The file on this machine that `--dataset` names; None for a version, a revision or a Hub id.

    Raises UsageProblem for what looks like a file and is none.
    """
    if not isinstance(dataset, str):
        return None
    path = Path(dataset).expanduser() if dataset.strip() and "\0" not in dataset else None
    if path is not None and path.is_file():
        return path
    if MARK not in dataset and dataset.lower().endswith(_DATA_SUFFIXES):
        raise UsageProblem(
            f"--dataset {dataset!r} is not a file here; for one below the service's data root use "
            f"--set dataset_name={dataset}"
        )
    return None


def is_hub_id(dataset: object) -> bool:
    """Whether `--dataset` names a dataset on the Hub: OWNER/NAME."""
    return isinstance(dataset, str) and MARK not in dataset and dataset.count("/") == 1 and not dataset.startswith("/")


def is_version(dataset: object) -> bool:
    """Whether `--dataset` names a version with its dataset: NAME@VERSION."""
    return isinstance(dataset, str) and MARK in dataset


def add_file(client: "Tuneyard", path: Path, fields: Mapping[str, Any]) -> "AddedDataset":
    """Add the file of a job. Raises UsageProblem if the job could not read its rows."""
    added = client.datasets.add(path)
    if added.format is None and fields.get("dataset_text_field") is None:
        raise UsageProblem(
            f"{path} has no known format: its columns are {', '.join(added.columns)}; name the one with the text by "
            "--set dataset_text_field=COLUMN, or write messages, instruction and output, or prompt and completion"
        )
    return added


def explain_choices(fields: Mapping[str, Any], options: Mapping[str, Any]) -> str | None:
    """What the job sets beside its model and data, for all that differs from the defaults; None if nothing does."""
    given = {name: value for name, value in {**fields, **options}.items() if name not in _SAID and value is not None}
    if not given:
        return None
    return "differs from the defaults: " + ", ".join(f"{name} {value}" for name, value in given.items())
