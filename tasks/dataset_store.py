"""Stores datasets in `<home>/datasets/<md5>/`; each folder is complete and immutable."""

import contextlib
import hashlib
import json
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sft.data.data_files import count_file_rows
from sft.data.file_content import check_kind, count_parquet_rows
from sft.data.parts import list_parts
from sft.errors import InvalidDataset
from sft.files.publication import sync_path
from tasks.split_files import is_rows, pick_files

MANIFEST = ".manifest.json"
HASHED_BYTES = 1 << 20  # at once


@dataclass(frozen=True)
class StoredDataset:
    """A dataset's files and their row counts."""

    md5: str
    train_file: Path
    eval_file: Path | None
    rows: int  # in train_file
    unused: tuple[str, ...] = ()  # files that look like rows, but are neither of the two


def store_dataset(
    store: Path, md5: str, listing: dict[str, str], download: Callable[[str, Path], None], split: str
) -> StoredDataset:
    """Download the files of `listing` (name to md5) into `store/md5`, once for concurrent jobs.

    Args:
        download: writes the named file to a path.

    Raises:
        InvalidDataset: a file's md5 differs from the listing's, or its rows can't be read.
    """
    if not md5.endswith(".dir"):
        recorded = next(iter(listing.values()))
    elif (recorded := combine_md5(listing)) != md5:
        raise InvalidDataset(f"the list of files has md5 {recorded}, the registry recorded {md5}; push it again")
    if outside := [name for name in listing if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise InvalidDataset(f"the list of files names {outside[0]!r}, which is outside the dataset's folder")
    store.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(store, md5)
    with FileLock(store / f".{md5}.lock"):
        if not (store / md5).exists():
            for leftover in store.glob(f".{md5}.*/"):  # of a process that was killed; no other one makes this dataset
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryDirectory(prefix=f".{md5}.", dir=store) as scratch:
                fresh = Path(scratch, md5)
                for name, expected in listing.items():
                    target = fresh / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    download(name, target)
                    if (found := hash_file(target)) != expected:
                        raise InvalidDataset(f"{name} has md5 {found}, the registry recorded {expected}; push it again")
                    publish(target)
                rows = {name: _count_if_readable(fresh / name) for name in listing if is_rows(name)}
                (fresh / MANIFEST).write_text(json.dumps({"rows": rows}), encoding="utf-8")
                publish(fresh / MANIFEST)
                fresh.rename(store / md5)
                sync_path(store)
    return read_stored(store / md5, split)


def _remove_leftovers(store: Path, md5: str) -> None:
    """Remove leftovers of killed processes, of all datasets but this one."""
    for leftover in store.glob(".*.*/"):
        lock = store / f"{leftover.name.rpartition('.')[0]}.lock"
        if lock.name != f".{md5}.lock" and lock.exists():
            with contextlib.suppress(Timeout), FileLock(lock, timeout=0):  # otherwise it is being made
                shutil.rmtree(leftover, ignore_errors=True)


def read_stored(folder: Path, split: str) -> StoredDataset:
    """Read the dataset in a folder of the store.

    Raises:
        DatasetNotFound: the dataset has no such split.
        InvalidDataset: the split's file can't be read.
    """
    rows: dict[str, int | None] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["rows"]
    if not folder.name.endswith(".dir"):  # a single file with any name
        train, held_out, unused = next(iter(rows)), None, list[str]()
    else:
        names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        train, held_out, unused = pick_files(names, split)
    counts = [rows.get(str(part.relative_to(folder))) for part in list_parts(folder / train)]
    known = [count for count in counts if count is not None]
    count = sum(known) if len(known) == len(counts) else count_rows(folder / train)
    return StoredDataset(folder.name, folder / train, folder / held_out if held_out else None, count, tuple(unused))


def _count_if_readable(path: Path) -> int | None:
    """Count a file's rows; None if it can't be read, such as JSON that is not rows: it may never be used."""
    try:
        return _count_part(path)
    except InvalidDataset:
        return None


def count_rows(path: Path) -> int:
    """Count the rows of a file in all its parts, broken ones included. Raises InvalidDataset if it can't be read."""
    return sum(map(_count_part, list_parts(path)))


def _count_part(path: Path) -> int:
    check_kind(path)
    try:
        return count_parquet_rows(path) if path.suffix.lower() == ".parquet" else count_file_rows(path)
    except (ValueError, OSError) as error:  # pyarrow's errors are ValueErrors, and so is InvalidDataset
        raise InvalidDataset(f"{path.name} can't be read as {path.suffix[1:]}: {error}") from error


def hash_file(path: Path, is_stopped: Callable[[], bool] = lambda: False) -> str:
    """MD5 as DVC computes it: an identifier, not a protection. That of the part before `is_stopped` is true."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as content:
        while not is_stopped() and (piece := content.read(HASHED_BYTES)):
            digest.update(piece)
    return digest.hexdigest()


def hash_parts(path: Path, is_stopped: Callable[[], bool] = lambda: False) -> str:
    """`hash_file`; of a file in several parts as of a folder with them alone."""
    parts = list_parts(path)
    if parts == [path]:
        return hash_file(path, is_stopped)
    return combine_md5({part.name: hash_file(part, is_stopped) for part in parts})


def hash_and_count(train: Path, held_out: Path | None) -> tuple[str, int]:
    """Hash and count the training rows at the same time; the held-out ones are counted too, to find errors.

    Counting soon raises in a file of whatever size that has no lines, and hashing ends with it.
    """
    has_failed = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        digest = pool.submit(hash_parts, train, has_failed.is_set)
        try:
            rows = count_rows(train)
            if held_out:
                count_rows(held_out)
        except BaseException:
            has_failed.set()
            raise
        return digest.result(), rows


def hash_bytes(content: bytes) -> str:
    """MD5 of content in memory."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def combine_md5(listing: dict[str, str]) -> str:
    """DVC's md5 of a folder: of the JSON list of its files' md5 and paths, sorted by path.

    Matches `dvc_data.hashfile.tree.Tree.digest`.
    """
    files = [{"md5": md5, "relpath": name} for name, md5 in sorted(listing.items())]
    return hash_bytes(json.dumps(files).encode()) + ".dir"


def publish(path: Path) -> None:
    """Sync a finished file to disk and make it read-only, for those who may read its folder."""
    path.chmod(0o444 & path.parent.stat().st_mode)
    sync_path(path)
    sync_path(path.parent)
