"""What `mixed_precision: auto` came to on a machine: measured once and kept, so that a seed gives the same run again.

Loads no torch: `tuneyard doctor` reads the record too.
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

FILE = "dtype.json"  # by machine, since several may share a folder


class DtypeRecord(NamedTuple):
    """`mixed_precision` is what was faster; the times are of one matrix product."""

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
    """What a measurement holds for: this processor with this torch."""
    return f"{name_cpu()}, torch {version('torch')}"


def read_record(folder: Path) -> DtypeRecord | None:
    """What was measured on this machine; None when nothing was."""
    try:
        return DtypeRecord(**json.loads((folder / FILE).read_text(encoding="utf-8"))[describe_machine()])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measure_once(folder: Path, measure: Callable[[], tuple[str, float, float]]) -> DtypeRecord:
    """What was measured on this machine; who asks first measures, and those beside wait for it.

    Where the folder can't be written to it is measured each time.

    Args:
        measure: gives `mixed_precision`, and the seconds in fp32 and in bf16.
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
    except OSError:  # a folder that is only read: nobody keeps anything there
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
