"""Whether the dataset is anywhere a job would look: the dataset registry, the data root, the Hub."""

from collections.abc import Iterator
from pathlib import Path

from jobs.preflight.findings import Finding
from jobs.preflight.hub import HUB_ID, Presence, find_cached, find_on_hub
from jobs.preflight.registry import find_view
from jobs.preflight.surroundings import Surroundings
from jobs.spec import JobSpec
from sft.data.file_content import check_kind
from sft.errors import DatasetNotFound, InvalidConfig, InvalidDataset
from sft.files.places import follow

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
FIELD = "dataset_name"
FILES_AT_MOST = 20


def check_dataset(spec: JobSpec, around: Surroundings) -> Iterator[Finding]:
    """A revision, name or file that is missing, or a file that can't be rows."""
    reference = spec.config.dataset_name
    name, at, revision = reference.partition("@")
    if not at:
        yield from _check_plain(reference, around)
        return
    data_root = around.settings.data_root
    if _looks_like_file(revision):
        yield Finding(
            DatasetNotFound,
            FIELD,
            f"{revision!r} looks like a file. Put it below {data_root} and give it to the SFT API as dataset_name",
        )
    elif not name or not revision:
        yield Finding(DatasetNotFound, FIELD, f"{reference!r} is not of the form name@revision")
    elif (view := find_view(around.settings, around.workers_are_here)) is not None:
        problem = view.find_problem(name, revision)
        if problem is not None:
            yield Finding(DatasetNotFound, FIELD, f"{problem}{around.hint}")


def _check_plain(reference: str, around: Surroundings) -> Iterator[Finding]:
    """A file or folder below the data root, else a dataset of the registry, else one on the Hub."""
    root = around.settings.data_root
    if not around.sees(root):
        return
    path = follow(reference, root)
    if path is None:
        text = f"{reference!r} leads outside the data root {root}; put the file below it"
        yield Finding(InvalidConfig, FIELD, text)
    elif path.is_file():
        yield from _check_file(reference, path)
    elif path.is_dir():
        yield from _check_folder(reference, path)
    elif not _is_elsewhere(reference, around):
        yield Finding(
            DatasetNotFound,
            FIELD,
            f"{reference!r} is not a file or folder below the data root {root}, and neither the dataset registry nor "
            f"the Hub is known to have it; put the file there or name another dataset{around.hint}",
        )


def _is_elsewhere(reference: str, around: Surroundings) -> bool:
    """Whether the registry or the Hub has it, or may have it."""
    view = find_view(around.settings, around.workers_are_here)
    if view is None or view.find_problem(reference, None) is None:
        return True
    if not HUB_ID.fullmatch(reference):
        return False
    if find_cached("datasets", reference) is not None:
        return True
    found = find_on_hub("datasets", reference)
    return found is not Presence.ABSENT and not (found is Presence.UNREACHABLE and around.workers_are_here)


def _check_file(reference: str, path: Path) -> Iterator[Finding]:
    if path.suffix.lower() not in SUFFIXES:
        text = f"{reference!r} must end in one of {', '.join(SUFFIXES)}; convert the file"
        yield Finding(InvalidDataset, FIELD, text)
    elif path.stat().st_size == 0:
        yield Finding(InvalidDataset, FIELD, f"{reference!r} is empty")
    else:
        yield from _check_content(reference, path)


def _check_folder(reference: str, folder: Path) -> Iterator[Finding]:
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not files:
        text = f"{reference!r} has no rows: a folder holds a file for each split, such as train.jsonl"
        yield Finding(DatasetNotFound, FIELD, text)
    for path in files[:FILES_AT_MOST]:
        if follow(str(path), folder) is None:
            yield Finding(
                InvalidConfig, FIELD, f"{reference!r}: {path} leads outside {folder}; put the file itself there"
            )
        else:
            yield from _check_content(reference, path)


def _check_content(reference: str, path: Path) -> Iterator[Finding]:
    try:
        check_kind(path)
    except InvalidDataset as error:
        yield Finding(InvalidDataset, FIELD, f"{reference!r}: {error}")


def _looks_like_file(revision: str) -> bool:
    return revision.startswith(("/", "./", "../", "~")) or revision.lower().endswith(SUFFIXES)
