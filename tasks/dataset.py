"""Step 1 of a job: resolves a dataset reference to files, identified by commit and md5."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from jobs.sanitizing.log_lines import hide_passwords
from jobs.settings import Settings
from sft.confinement import step
from sft.data.file_content import COMPRESSED_SUFFIXES, check_kind
from sft.data.parts import list_parts
from sft.errors import DatasetNotFound, InvalidConfig, InvalidDataset, TuneyardError
from sft.files.places import follow
from sft.files.temporary_folders import temporary_folder
from tasks.dataset_registry import ensure_registry, git
from tasks.dataset_registry_outputs import check_md5, check_outputs
from tasks.dataset_store import (
    StoredDataset,
    combine_md5,
    hash_and_count,
    hash_bytes,
    read_stored,
    store_dataset,
)
from tasks.dataset_version import DatasetVersion
from tasks.hub import fetch_from_hub
from tasks.limits import reading_input
from tasks.own_dataset import fetch_own, resolve_own
from tasks.split_files import is_rows, pick_files
from tuneyard_wire.dataset_reference import FILE_SUFFIXES, DatasetReference, find_file_suffix

REGISTRY_BYTES = 6 * 2**20  # assumed size of a registry's DVC files: adds half a minute to the step's time limit
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def resolve(reference: str, settings: Settings, split: str = "train") -> DatasetVersion:
    """`find_version` within the limits for reading input. Also raises ResourceLimit."""
    with reading_input(settings, reference):
        return find_version(reference, settings, split)


def find_version(reference: str, settings: Settings, split: str) -> DatasetVersion:
    """Find the dataset of `reference` and fetch its files.

    `name@revision` is a dataset that was added, at a version, else one of the registry, at a tag, a branch or a commit.
    Without a revision it is a file or a folder below `settings.data_root`, else the newest version of a dataset that
    was added, else a dataset on the registry's main branch, else a dataset on the Hub.

    Raises:
        DatasetNotFound: listing the places searched.
        InvalidConfig: the path leaves the data root.
        InvalidDataset: files differ from what the registry recorded, or can't be read.
    """
    named = DatasetReference.parse(reference)
    if problem := named.find_problem():
        raise DatasetNotFound(f"dataset_name {problem}")
    if named.revision is not None:
        return resolve_registered(named, settings, split)
    if local := find_local(reference, settings.data_root):
        return describe_local(reference, local, split)
    misses = [f"no file or folder {settings.data_root / reference}"]
    try:
        return resolve_registered(named, settings, split)
    except DatasetNotFound as error:
        misses.append(str(error))
    if not HUB_ID.fullmatch(reference):
        raise DatasetNotFound(f"dataset {reference} not found: {'; '.join(misses)}")
    try:
        commit, stored = fetch_from_hub(reference, settings.home / "datasets", split)
    except DatasetNotFound as error:
        misses.append(str(error))
        raise DatasetNotFound(f"dataset {reference} not found: {'; '.join(misses)}") from error
    url = f"https://huggingface.co/datasets/{reference}"
    return DatasetVersion.of(stored, name=reference, revision=commit, commit=commit, source="hub", url=url)


def find_local(reference: str, data_root: Path) -> Path | None:
    """Find the file or folder of `reference` below the data root, following links; None if there is none."""
    path = follow(reference, data_root)
    if path is None:
        raise InvalidConfig(
            f"dataset_name {reference!r} leads outside the data root {data_root}; put the file below it"
        )
    return path if path.exists() and path != data_root.resolve() else None


def describe_local(reference: str, path: Path, split: str) -> DatasetVersion:
    """Describe a local file, or a folder with one file per split; they are used in place."""
    held_out, unused = None, list[str]()
    train = path
    if path.is_dir():
        picked = pick_files([file.name for file in path.iterdir() if not file.is_dir()], split)
        train, held_out, unused = path / picked.train, picked.held_out, picked.unused
    elif path.suffix.lower() in COMPRESSED_SUFFIXES and not is_rows(path.name):
        raise InvalidDataset(f"dataset file {reference} is compressed; unpack it first")
    if not is_rows(train.name):
        raise InvalidDataset(f"dataset file {reference} must end in one of {', '.join(FILE_SUFFIXES)}")
    held_out_file = path / held_out if held_out else None
    for file in list_parts(train) + (list_parts(held_out_file) if held_out_file else []):
        if follow(str(file), path) is None:
            raise InvalidConfig(f"{file} is a link that leads outside {path}, or nowhere; put the file itself there")
        check_kind(file)  # before all of it is read
    md5, rows = hash_and_count(train, held_out_file)
    stored = StoredDataset(md5, train, held_out_file, rows, tuple(unused))
    return DatasetVersion.of(stored, name=reference, revision=None, commit=None, source="file", url=path.as_uri())


def resolve_registered(named: DatasetReference, settings: Settings, split: str) -> DatasetVersion:
    """A dataset that was added, or one of the registry at a revision (its main branch if none is named).

    It is fetched once. One that was added on another machine is in the store, which is asked last.
    """
    if added := resolve_own(named, settings, split):
        return added
    try:
        return resolve_configured(named, settings, split)
    except DatasetNotFound:
        if added := fetch_own(named, settings, split):
            return added
        raise


def resolve_configured(named: DatasetReference, settings: Settings, split: str) -> DatasetVersion:
    """A dataset of the configured registry, or of the default one, fetched once through DVC."""
    registry = ensure_registry(settings)
    name, wanted = named.name, named.revision or find_main_branch(registry)
    commit = find_commit(registry, wanted)
    label = str(DatasetReference(name, wanted))
    with reading_registry(registry, label), open_revision(registry, commit) as tree:
        with step(f"dataset_name {label}: to read the registry's DVC files", REGISTRY_BYTES):
            check_outputs(tree.repo, name)
        path, info = find_dataset(tree, name, label, registry)
        stored = fetch(tree, path, info, settings.home / "datasets", split)
    url = hide_passwords(settings.dataset_registry or str(registry))
    return DatasetVersion.of(stored, name=name, revision=wanted, commit=commit, source="dvc", url=url)


@contextmanager
def reading_registry(registry: Path, label: str) -> Iterator[None]:
    """Raise DVC's errors in the block as DatasetNotFound or InvalidDataset about the registry.

    Malformed DVC files cause errors of any kind: a list of files with `..` causes a RecursionError.
    """
    from dvc.exceptions import DvcException

    try:
        yield
    except FileNotFoundError as error:
        raise DatasetNotFound(f"dataset {label}: {error}; run `dvc push --all-tags` in the registry") from error
    except DvcException as error:
        raise InvalidDataset(
            f"dataset {label}: DVC can't read the registry {registry}: {hide_passwords(str(error))}"
        ) from error
    except (TuneyardError, OSError, MemoryError):  # these are handled by the callers
        raise
    except ImportError as error:
        raise InvalidDataset(
            f"dataset {label}: the registry's DVC remote can't be read here: {error}; install it where jobs run"
        ) from error
    except Exception as error:
        raise InvalidDataset(
            f"dataset {label}: DVC can't parse its files in the registry {registry} ({type(error).__name__}); "
            "add it to DVC again"
        ) from error


def find_main_branch(registry: Path) -> str:
    """`main`, or the branch that is checked out if there is no such branch."""
    return "main" if git(registry, "branch", "--list", "main") else "HEAD"


def find_commit(registry: Path, revision: str) -> str:
    """Full SHA of a tag, branch or (short) commit."""
    try:
        return git(registry, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except DatasetNotFound as error:
        tags = git(registry, "tag", "--list").split()
        branches = git(registry, "branch", "--list", "--format=%(refname:short)").split()
        raise DatasetNotFound(
            f"revision {revision} is not in the dataset registry {registry}; "
            f"tags: {', '.join(tags) or 'none'}; branches: {', '.join(branches) or 'none'}"
        ) from error


@contextmanager
def open_revision(registry: Path, commit: str) -> Iterator[Any]:
    """Open the registry's files at a commit as a DVCFileSystem; the registry is only read."""
    from dvc.api import DVCFileSystem
    from dvc.config import Config
    from dvc.repo import Repo

    with temporary_folder("tuneyard-dvc-") as scratch:
        config: dict[str, Any] = {"core": {"site_cache_dir": str(scratch)}}
        dvc_dir = registry / ".dvc"
        if dvc_dir.is_dir():  # use its present remotes; a relative one is relative to this folder
            current = Config(str(dvc_dir), local_dvc_dir=str(dvc_dir))
            config["remote"] = current["remote"]
            config["core"] |= {key: value for key, value in current["core"].items() if key == "remote"}
        else:
            config["cache"] = {"dir": f"{scratch}/cache"}
        with Repo(str(registry), rev=commit, config=config, uninitialized=True) as repo:
            yield DVCFileSystem(repo=repo)


def find_dataset(tree: Any, name: str, label: str, registry: Path) -> tuple[str, dict[str, Any]]:
    """Path and DVC's info of the folder or file called `name`, its suffix optional."""
    parts = PurePosixPath(name).parts
    # Names that begin with a dot belong to git and DVC, whose settings may contain passwords.
    if not PurePosixPath(name).is_absolute() and parts and not any(part.startswith(".") for part in parts):
        for path in ("/" + "/".join(parts) + suffix for suffix in ("", *FILE_SUFFIXES)):
            try:
                info = tree.info(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if info["type"] == "directory" or find_file_suffix(path):
                return path, info
    raise DatasetNotFound(
        f"dataset {label} is not in the registry {registry}; it has: {', '.join(list_datasets(tree)) or 'none'}"
    )


def list_datasets(tree: Any) -> list[str]:
    """Names of the datasets at the top of the registry: tracked by DVC, or row files in git itself."""
    names = []
    for info in tree.ls("/", detail=True):
        path = PurePosixPath(info["name"])
        holds_rows = is_rows(path.name)
        in_git = info["type"] == "directory" and any(tree.exists(f"{path}/train{suffix}") for suffix in FILE_SUFFIXES)
        if info.get("isdvc") or info.get("dvc_info", {}).get("isdvc") or holds_rows or in_git:
            names.append(path.stem if holds_rows else path.name)
    return sorted(names)


def fetch(tree: Any, path: str, info: dict[str, Any], store: Path, split: str) -> StoredDataset:
    """Fetch the files at `path` into the store. Raises FileNotFoundError for content in neither cache nor remote."""
    from dvc_data.index import DataIndexDirError

    md5: str | None = check_md5(info["md5"], path) if info.get("md5") else None
    if md5 and (store / md5).exists():
        return read_stored(store / md5, split)
    if info["type"] == "directory":
        try:
            found = tree.find(path, detail=True)
        except DataIndexDirError as error:
            raise FileNotFoundError(f"the list of files {md5} is missing in the DVC remote") from error
        files = {str(PurePosixPath(file).relative_to(path)): entry for file, entry in found.items()}
        files = {name: entry for name, entry in files.items() if not name.split("/")[-1].startswith(".")}
        listing = {
            name: check_md5(entry["md5"], name) if entry.get("md5") else hash_bytes(tree.cat_file(entry["name"]))
            for name, entry in files.items()
        }
        md5 = md5 or combine_md5(listing)
    else:
        md5 = md5 or hash_bytes(tree.cat_file(path))
        listing = {PurePosixPath(path).name: md5}

    def download(name: str, target: Path) -> None:
        try:
            tree.get_file(f"{path}/{name}" if info["type"] == "directory" else path, str(target))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{name} (md5 {listing[name]}) is missing in the DVC remote") from error

    return store_dataset(store, md5, listing, download, split)
