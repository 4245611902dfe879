"""Check that the dataset exists: among those that users added, in the registry, below the data root, or on the Hub."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from jobs.own_data.registry import OwnRegistry
from jobs.preflight.context import CheckContext
from jobs.preflight.dataset_registry import find_view
from jobs.preflight.findings import Finding
from jobs.preflight.hub import HUB_ID, Presence, find_cached, find_on_hub
from jobs.spec import JobSpec
from sft.data.file_content import check_kind
from sft.errors import DatasetNotFound, InvalidConfig, InvalidDataset
from sft.files.places import follow
from tuneyard_wire.dataset_reference import FILE_SUFFIXES, DatasetReference, find_file_suffix

FIELD = "dataset_name"
MAX_FILES = 20


def check_dataset(spec: JobSpec, context: CheckContext) -> Iterator[Finding]:
    """Find a missing revision, name or file, or a file that can't contain rows."""
    for field, reference in spec.config.name_datasets():
        for finding in _check(DatasetReference.parse(reference), context):
            yield replace(finding, field=field)


def _check(dataset: DatasetReference, context: CheckContext) -> Iterator[Finding]:
    data_root = context.settings.data_root
    if dataset.has_file_for_revision:
        yield Finding(
            DatasetNotFound,
            FIELD,
            f"{dataset.revision!r} looks like a file, not a revision; put the file below {data_root} under a name "
            "without @ and pass that to the SFT API as dataset_name",
        )
    elif problem := dataset.find_problem():
        yield Finding(DatasetNotFound, FIELD, problem)
    elif dataset.revision is None:
        yield from _check_name_alone(dataset, context)
    elif (added := _look_among_added(dataset, context)) is not None:
        yield from added
    elif (view := find_view(context.settings, context.workers_are_here)) is not None:
        problem = view.find_problem(dataset)
        if problem is not None:
            is_default = dataset.name == context.settings.default_dataset
            named = "a dataset that was added is named NAME@VERSION"
            others = named if is_default else f"no dataset {dataset.name!r} was added"
            yield Finding(DatasetNotFound, FIELD, f"{problem}; {others}{context.hint}")


def _check_name_alone(dataset: DatasetReference, context: CheckContext) -> Iterator[Finding]:
    """Check a file or folder below the data root, else a dataset of the registry, else one on the Hub."""
    root, reference = context.settings.data_root, dataset.name
    if not context.sees(root):
        return
    path = follow(reference, root)
    if path is None:
        text = f"{reference!r} leads outside the data root {root}; put the file below it"
        yield Finding(InvalidConfig, FIELD, text)
    elif path.is_file():
        yield from _check_file(reference, path)
    elif path.is_dir():
        yield from _check_folder(reference, path)
    elif not _is_elsewhere(dataset, context):
        yield Finding(
            DatasetNotFound,
            FIELD,
            f"{reference!r} is not a file or folder below the data root {root}, and was found neither in the dataset "
            f"registry nor on the Hub; put the file there or name another dataset{context.hint}",
        )


def _look_among_added(dataset: DatasetReference, context: CheckContext) -> list[Finding] | None:
    """What is wrong with the version of a dataset that a user added; None if none of this name was."""
    try:
        return None if OwnRegistry(context.settings.home).find(dataset) is None else []
    except DatasetNotFound as error:
        return [Finding(DatasetNotFound, FIELD, str(error).removeprefix("dataset "))]


def _is_elsewhere(dataset: DatasetReference, context: CheckContext) -> bool:
    """Whether the registry, a user or the Hub has the dataset, or may have it."""
    if _look_among_added(dataset, context) is not None:
        return True
    view = find_view(context.settings, context.workers_are_here)
    if view is None or view.find_problem(dataset) is None:
        return True
    if not HUB_ID.fullmatch(dataset.name):
        return False
    if find_cached("datasets", dataset.name) is not None:
        return True
    found = find_on_hub("datasets", dataset.name)
    return found is not Presence.ABSENT and not (found is Presence.UNREACHABLE and context.workers_are_here)


def _check_file(reference: str, path: Path) -> Iterator[Finding]:
    if find_file_suffix(path.name) is None:
        text = f"{reference!r} must end in one of {', '.join(FILE_SUFFIXES)}; convert the file"
        yield Finding(InvalidDataset, FIELD, text)
    elif path.stat().st_size == 0:
        yield Finding(InvalidDataset, FIELD, f"{reference!r} is empty")
    else:
        yield from _check_content(reference, path)


def _check_folder(reference: str, folder: Path) -> Iterator[Finding]:
    files = [path for path in sorted(folder.iterdir()) if find_file_suffix(path.name)]
    if not files:
        text = f"{reference!r} has no rows: a folder must contain a file for each split, such as train.jsonl"
        yield Finding(DatasetNotFound, FIELD, text)
    for path in files[:MAX_FILES]:
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
