"""Records what `mixed_precision: auto` means on a machine: measured once, so that a seed reproduces a run.

Does not import torch: `tuneyard doctor` reads the record too.
"""

import fcntl
import json
import logging
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger(__name__)

FILE = "dtype.json"  # has an entry per machine, since several may share a folder


class DtypeRecord(NamedTuple):
    """`mixed_precision` is the faster one; the seconds are those of one matrix product."""

    mixed_precision: str
    fp32_seconds: float
    bf16_seconds: float
    measured_at: str


def name_cpu() -> str:
    """The processor's model name."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def describe_machine() -> str:
    """The key of a measurement: processor and torch version."""
    return f"{name_cpu()}, torch {version('torch')}"


def read_record(folder: Path) -> DtypeRecord | None:
    """Read this machine's measurement; None without one."""
    try:
        return DtypeRecord(**json.loads((folder / FILE).read_text(encoding="utf-8"))[describe_machine()])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure_once(folder: Path, measure: Callable[[], tuple[str, float, float]]) -> DtypeRecord:
    """Return this machine's measurement; the first caller measures while concurrent ones wait.

    If the folder can't be written to, each call measures.

    Args:
        measure: returns `mixed_precision`, and the seconds in fp32 and in bf16.
    """
    with _alone(folder):
        if found := read_record(folder):
            return found
        record = DtypeRecord(*measure(), datetime.now(UTC).isoformat(timespec="seconds"))
        try:
            _keep(folder, record)
        except OSError as error:
            logger.warning("%s can't be written, so the dtype is measured for each job: %s", folder / FILE, error)
    return record


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f".{FILE}.lock").open("w")
    except OSError:  # a read-only folder has no record to lock
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _keep(folder: Path, record: DtypeRecord) -> None:
    try:
        records = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        records = {}
    records = (records if isinstance(records, dict) else {}) | {describe_machine(): record._asdict()}
    temporary = folder / f".{FILE}.new"
    temporary.write_text(json.dumps(records, indent=2), encoding="utf-8")
    temporary.replace(folder / FILE)
