"""Checks of Python and the installed packages, for `tuneyard doctor`."""

import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from cli.diagnosis import Diagnosis, Level


def check_python(version: str, required: str) -> Diagnosis:
    """Check that the Python version is supported."""
    if Version(version) in SpecifierSet(required):
        return Diagnosis(Level.OK, "python", version)
    remedy = "create .venv with python3.11: `make setup`"
    return Diagnosis(Level.FAIL, "python", f"{version}, requires {required}", remedy)


def check_packages(constraints: Path, version_of: Callable[[str], str | None]) -> Iterator[Diagnosis]:
    """Check that the packages are installed in the versions they were tested in."""
    if not constraints.exists():
        yield Diagnosis(Level.OK, "packages", "not compared: no constraints.txt")
        return
    lines = [line.split("#")[0].strip() for line in constraints.read_text(encoding="utf-8").splitlines()]
    pinned = {line.split("==")[0]: line.split("==")[1] for line in lines if "==" in line}
    found = {name: version_of(name) for name in pinned}
    untested = [
        f"{name} {version} instead of {pinned[name]}"
        for name, version in found.items()
        if version is not None and Version(version).public != Version(pinned[name]).public
    ]
    missing = [name for name in required_packages() if version_of(name) is None]
    remedy = "pip install -c constraints.txt -e ."
    if missing:
        yield Diagnosis(Level.FAIL, "packages", f"not installed: {', '.join(missing)}", remedy)
    if untested:
        yield Diagnosis(Level.WARN, "packages", f"untested versions: {', '.join(untested)}", remedy)
    if not missing and not untested:
        yield Diagnosis(Level.OK, "packages", "as in constraints.txt")


def required_packages() -> list[str]:
    """List the packages that Tuneyard requires directly."""
    requirements = map(Requirement, importlib.metadata.requires("tuneyard") or [])
    return [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]


def installed_version(name: str) -> str | None:
    """The installed version of a distribution; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
