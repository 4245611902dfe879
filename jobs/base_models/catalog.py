"""Lists and describes the base models below the model root."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from jobs.base_models.facts import ModelFacts, read_facts
from jobs.base_models.records import Record, read_record
from jobs.preflight.context import CheckContext
from jobs.preflight.models import check_base_model, find_model_folder
from jobs.settings import Settings
from sft.errors import ModelNotFound
from tuneyard_wire.model_folder import is_model_folder, is_model_name

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,250}")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def list_names(settings: Settings) -> list[str]:
    """The names of the models in the model root, `NAME` or `ORG/NAME`, in order."""
    return sorted(_walk(settings.model_root))


def describe_model(name: str, settings: Settings) -> dict[str, Any]:
    """The fields of `tuneyard_wire.base_models.Model` for a model in the model root.

    Raises:
        ModelNotFound: there is none of this name.
    """
    folder = find_folder(name, settings)
    record = find_record(name, folder, settings)
    is_readable = find_model_folder(name, _context(settings)) is not None  # else a link leaves the allowed roots
    return {
        **(read_facts(folder) if is_readable else ModelFacts())._asdict(),
        "name": name,
        "bytes": _measure(folder) if is_readable else 0,
        "path": str(folder.resolve()),
        "kind": "link" if folder.is_symlink() else "copy",
        "added_at": record.added_at if record else None,
        "owner": record.owner if record else None,
        "problem": find_problem(name, folder, settings),
    }


def find_folder(name: str, settings: Settings) -> Path:
    """The folder of a model in the model root. Raises ModelNotFound."""
    folder = settings.model_root / name
    if not (is_model_name(name) or _PLAIN.fullmatch(name)) or not _is_model(folder):
        alike = [full for full in list_names(settings) if full.endswith(f"/{name}")]
        remedy = f"give its full name, {' or '.join(alike[:3])}" if alike else "`tuneyard models list` lists them"
        raise ModelNotFound(f"no base model {name!r:.200} is in the model root; {remedy}")
    return folder


def list_inner(name: str, settings: Settings) -> list[str]:
    """The names of models in the folder of a model, which `list_names` leaves out but jobs can name."""
    folder = settings.model_root / name
    if "/" in name or folder.is_symlink():
        return []
    return sorted(f"{name}/{inner}" for inner, below in _folders(folder) if _is_model(below))


def find_record(name: str, folder: Path, settings: Settings) -> Record | None:
    """How the model was added; None if it was put there by hand."""
    record = read_record(settings, name)
    return record if record is not None and record.suits(folder) else None


def find_problem(name: str, folder: Path, settings: Settings) -> str | None:
    """Explain why no job can train a model, as far as its files' headers show; None if nothing is known."""
    try:
        for finding in check_base_model(name, _context(settings)):
            return finding.text
    except (OSError, TimeoutError):  # gone meanwhile, or others read long files
        return None
    return None


def identify_root(settings: Settings, make: bool = False) -> str | None:
    """Identifies the model root and its machine until that restarts; None where a system does not tell.

    Two processes that find the same one see the same files.

    Args:
        make: create it if it is missing; else it is then None.
    """
    try:
        if make:
            settings.model_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = settings.model_root.stat()
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return hashlib.sha256(f"{boot_id}:{found.st_dev}:{found.st_ino}".encode()).hexdigest()[:32]


def _context(settings: Settings) -> CheckContext:
    return CheckContext(settings, workers_are_here=True)  # what is asked is what is here


def _measure(folder: Path) -> int:
    sizes = 0
    for path in folder.iterdir():
        with suppress(OSError):  # removed meanwhile
            sizes += path.stat().st_size if path.is_file() else 0
    return sizes


def _walk(root: Path) -> Iterator[str]:
    for name, folder in _folders(root):
        if _is_model(folder):
            yield name
        elif not folder.is_symlink():
            yield from (f"{name}/{inner}" for inner, below in _folders(folder) if _is_model(below))


def _folders(root: Path) -> Iterator[tuple[str, Path]]:
    try:
        entries = [*os.scandir(root)]
    except OSError:
        return
    for entry in entries:
        if _PLAIN.fullmatch(entry.name):
            yield entry.name, Path(entry.path)


def _is_model(folder: Path) -> bool:
    try:
        return is_model_folder(folder)
    except OSError:
        return False
