"""Locates Tuneyard's own code and files, in a checkout or an installed wheel."""

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path

from sft.errors import StackError

PROJECT_ROOT = Path(__file__).resolve().parent.parent  # the checkout, or site-packages
MANIFEST = "prefect.yaml"


def is_checkout() -> bool:
    """Whether this code runs from a checkout."""
    return (PROJECT_ROOT / "pyproject.toml").is_file() and (PROJECT_ROOT / MANIFEST).is_file()


def find_sources() -> Path:
    """Find the folder of prefect.yaml, dvc.yaml, constraints.txt and datasets/ (a wheel's `share/tuneyard`).

    Raises:
        StackError: the installation lacks them.
    """
    if is_checkout():
        return PROJECT_ROOT
    try:
        files = importlib.metadata.files("tuneyard") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == MANIFEST and Path(str(file.locate())).is_file():
            return Path(str(file.locate())).resolve().parent
    raise StackError(f"{MANIFEST} is missing from this installation of Tuneyard; install it again, or run a checkout")


def default_home() -> Path:
    """The default state folder: in the checkout, otherwise one per user."""
    if is_checkout():
        return PROJECT_ROOT / ".tuneyard"
    chosen = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (chosen if chosen.is_absolute() else Path("~/.local/share")) / "tuneyard"


def expand_user(path: Path, variable: str) -> Path:
    """Expand `~`. Raises StackError for a user whose home is not known."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise StackError(
            f"{variable} is {str(path)!r}, and no home folder is known for that; write the path"
        ) from error


def code_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for our Python processes: with this code on the path, and UTF-8 mode."""
    found = environment.get("PYTHONPATH", "")
    root = str(PROJECT_ROOT)
    is_needed = is_checkout() and os.pathsep not in root and root not in found.split(os.pathsep)
    paths = [root, *([found] if found else [])] if is_needed else [found] if found else []
    return {
        **{name: value for name, value in environment.items() if name != "PYTHONPATH"},
        "PYTHONUTF8": "1",
        **({"PYTHONPATH": os.pathsep.join(paths)} if paths else {}),
    }
