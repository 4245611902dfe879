"""Tokenizes data files into shards of a folder; one that was stopped goes on after its last complete shard.

A shard has the rows of a fixed number of blocks, so its bytes depend on neither the number of processes nor on stops.
"""

import contextlib
import fcntl
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice, takewhile
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sft.config import SFTConfig
from sft.data.encoding import SPLITS, BlockEncoder, EncodedBlock, build_schema
from sft.data.forked_workers import map_ordered
from sft.data.row_blocks import Block
from sft.data.row_report import SplitReport
from sft.data.splits import EVAL, TRAIN, Sides, choose_sides
from sft.errors import InvalidDataset, StackError
from sft.files.publication import discard_folder, sync_path
from sft.files.temporary_folders import remove_unused

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

SHARD_BLOCKS = 32  # about 32 MB of text
SUFFIX = ".shards"
STALE_SECONDS = 86400.0  # after which shards that no process went on with are removed
POLL_SECONDS = 0.2


class Chosen(NamedTuple):
    """The sides of a file's rows, (rows,), and the number of rows of each of its blocks, (blocks,)."""

    sides: Sides
    counts: NDArray[np.int64]


class RowSource(NamedTuple):
    """Where rows come from: a file, and what opens its blocks, or some of them, as often as it is called."""

    file: Path
    open: Callable[[], Iterable[Block]]


Task = tuple[Block, Sides | int]  # a block, and the side of each of its rows or of all of them


@contextmanager
def lock_shards(folder: Path) -> Iterator[Path]:
    """Yield the folder for the shards of `folder`, which one process at a time has; others wait.

    It is removed at the end. After a stop (a BaseException that is no Exception), a kill or an error that another
    attempt may not meet its complete shards stay, and the next process goes on with them.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    leftovers = folder.parent.glob(f".*{SUFFIX}")
    remove_unused(path for path in leftovers if time.time() - path.stat().st_mtime > STALE_SECONDS)
    shards, lock = _lock(folder)
    try:
        yield shards
    except BaseException as error:
        if (isinstance(error, Exception) and not isinstance(error, StackError)) or not _list_complete(shards):
            discard_folder(shards)
        raise
    else:
        discard_folder(shards)
    finally:
        os.close(lock)


def write_shards(
    config: SFTConfig,
    encoder: BlockEncoder,
    train: RowSource,
    held_out: RowSource | None,
    folder: Path,
    processes: int,
    on_rows: Callable[[int], None],
) -> dict[str, SplitReport]:
    """Tokenize into `train-00000.arrow`, `eval-00000.arrow` and so on; returns the reports by split.

    Args:
        held_out: the held-out rows; without it they are a share of the training rows.
        folder: may have the first shards already.
        on_rows: called with the number of rows that are done.

    Raises:
        InvalidDataset, TemplateNotFound: as `BlockEncoder`; a file has no rows.
    """
    sources = [(train, TRAIN, config.validation_split)]
    if held_out:
        sources = [(train, TRAIN, 0.0), (held_out, EVAL, 0.0)]
    chosen = [_choose(config, encoder, *source, folder, processes) for source in sources]
    tasks = chain.from_iterable(
        _list_tasks(source, side, sides) for (source, side, _), sides in zip(sources, chosen, strict=True)
    )
    reports = {name: SplitReport() for name in SPLITS.values()}
    complete = _list_complete(folder)
    rows = 0
    for path in complete:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows += found["rows"]
        for name, report in reports.items():
            report.add(SplitReport.from_dict(found["reports"][name]))
    if complete:
        logger.info("Going on after %d rows that were tokenized before", rows)
        on_rows(rows)
    encoded = map_ordered(encoder, islice(tasks, len(complete) * SHARD_BLOCKS, None), processes)
    with contextlib.closing(encoded):
        for number in range(len(complete), 10**9):
            first = next(encoded, None)
            if first is None:
                return reports
            with _Shard(folder, number) as shard:
                for block in chain([first], islice(encoded, SHARD_BLOCKS - 1)):
                    shard.add(block)
                    rows += block.rows
                    on_rows(rows)
            for name, report in reports.items():
                report.add(shard.reports[name])
    return reports


def _choose(
    config: SFTConfig, encoder: BlockEncoder, source: RowSource, side: int, share: float, folder: Path, processes: int
) -> Chosen | None:
    """The sides of a file's rows; None if no choice is to be made. Raises InvalidDataset if it has no rows."""
    if not share and config.max_samples is None:
        return None
    kept = folder / f"sides-{SPLITS[side]}.npz"
    if kept.exists():
        with np.load(kept) as arrays:
            return Chosen(arrays["sides"], arrays["counts"])
    hashed = list(map_ordered(encoder.hash, _read(source), processes))
    counts = np.array([len(plain) for plain, _ in hashed])
    plain, seeded = (np.concatenate([pair[place] for pair in hashed]) for place in (0, 1))
    sides = choose_sides(plain, seeded, share, config.max_samples)
    sides[sides == TRAIN] = side
    _write_whole(kept, lambda path: np.savez(path, sides=sides, counts=counts))
    return Chosen(sides, counts)


def _list_tasks(source: RowSource, side: int, chosen: Chosen | None) -> Iterator[Task]:
    """Yield the blocks of a file with the sides of their rows. Raises InvalidDataset if it has no rows."""
    if chosen is None:
        for block in _read(source):
            yield block, side
        return
    ends = np.cumsum(chosen.counts)
    for block, start, end in zip(_read(source), ends - chosen.counts, ends, strict=True):
        yield block, chosen.sides[start:end]


def _read(source: RowSource) -> Iterator[Block]:
    has_rows = False
    for block in source.open():
        has_rows = has_rows or block.count_rows() > 0
        yield block
    if not has_rows:
        raise InvalidDataset(f"{source.file.name} has no rows")


class _Shard:
    """Writes one shard: its Arrow files, then the report that marks it as complete."""

    def __init__(self, folder: Path, number: int) -> None:
        self.reports = {name: SplitReport() for name in SPLITS.values()}
        self._folder, self._number = folder, number
        self._rows = 0
        self._writers: dict[str, pa.RecordBatchStreamWriter] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def add(self, block: EncodedBlock) -> None:
        """Add a block's rows."""
        import pyarrow as pa

        self._rows += block.rows
        for name, table in block.tables.items():
            self.reports[name].add(block.reports[name])
            if table is not None:
                for batch in pa.ipc.open_stream(table):
                    self._open(name).write_batch(batch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        if error is not None:
            return
        for name in self._writers:
            sync_path(self._path(name))
        report = {
            "rows": self._rows,
            "reports": {name: part.to_dict() for name, part in self.reports.items()},
            "files": {self._path(name).name: self._path(name).stat().st_size for name in self._writers},
        }
        complete = self._folder / f"shard-{self._number:05}.json"
        _write_whole(complete, lambda path: path.write_text(json.dumps(report), encoding="utf-8"))

    def _open(self, name: str) -> "pa.RecordBatchStreamWriter":
        import pyarrow as pa

        if name not in self._writers:
            sink = self._stack.enter_context(pa.OSFile(str(self._path(name)), "wb"))
            self._writers[name] = self._stack.enter_context(pa.ipc.new_stream(sink, build_schema()))
        return self._writers[name]

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}-{self._number:05}.arrow"


def _list_complete(folder: Path) -> list[Path]:
    """The reports of the complete shards, in order, up to the first one that lacks a file.

    Files are missing where a process was killed after it had moved some of them to where they are used.
    """
    return [*takewhile(_has_files, sorted(folder.glob("shard-*.json")))]


def _has_files(report: Path) -> bool:
    files = json.loads(report.read_text(encoding="utf-8")).get("files")
    return files is not None and has_files(report.parent, files)


def has_files(folder: Path, sizes: dict[str, int]) -> bool:
    """Whether a folder has these files, each with its size in bytes."""
    try:
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except OSError:
        return False


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that is there either whole or not at all."""
    new = path.with_name(f"new-{path.name}")
    write(new)
    sync_path(new)
    new.rename(path)
    sync_path(path.parent)


def _lock(folder: Path) -> tuple[Path, int]:
    """Make and lock the folder of the shards; waits for a process that has it."""
    shards, is_waiting = folder.with_name(f".{folder.name}{SUFFIX}"), False
    while True:
        shards.mkdir(exist_ok=True)
        try:
            lock = os.open(shards, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if shards.stat().st_ino == os.fstat(lock).st_ino:
                return shards, lock
        except FileNotFoundError:  # the process that had it has removed it
            pass
        except BlockingIOError:
            if not is_waiting:
                logger.info("Waiting for another process that tokenizes the same rows")
                is_waiting = True
            time.sleep(POLL_SECONDS)
        except OSError:  # a file system without locks: a folder of one's own, which nobody goes on with
            return Path(tempfile.mkdtemp(SUFFIX, f".{folder.name}-", folder.parent)), lock
        os.close(lock)
