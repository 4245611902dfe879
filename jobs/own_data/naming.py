"""Names of datasets that users add, and of their versions."""

import re
from pathlib import PurePosixPath

from sft.data.parts import read_part_name
from sft.errors import InvalidConfig
from tuneyard_wire.dataset_reference import FILE_SUFFIXES, find_file_suffix

MAX_CHARACTERS = 100
MAX_FILENAME = 1000  # characters
NAME = rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_CHARACTERS - 1}}}"
RULE = f"must be 1 to {MAX_CHARACTERS} letters, digits, '.', '_' or '-', the first a letter or digit"
_NAME = re.compile(NAME)
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_OTHERS = re.compile(r"[^A-Za-z0-9._-]+")
RESERVED = "uploads"
NEWEST = ("main", "HEAD")  # what a registry's newest state is called
FILE_ID = re.compile(r"file-[0-9a-f]{24}")  # of OpenAI's interface


def check_name(name: str, field: str = "name") -> str:
    """Return the name of a dataset if it is valid. Raises InvalidConfig."""
    if not _NAME.fullmatch(name):
        raise InvalidConfig(f"{field} {RULE}, got {name!r:.120}")
    if find_file_suffix(name):
        raise InvalidConfig(f"{field} must not end as a file's name does ({find_file_suffix(name)}), got {name!r:.120}")
    if read_part_name(name):
        raise InvalidConfig(f"{field} must not be that of one part of a file, got {name!r}; join the parts")
    if name == RESERVED:
        raise InvalidConfig(f"{field} must not be {RESERVED!r}, which the API uses")
    if FILE_ID.fullmatch(name):
        raise InvalidConfig(f"{field} must not have the form of a file's id, got {name!r}")
    if ".." in name or name.endswith((".", ".lock")):  # git has no such tags
        raise InvalidConfig(f"{field} must neither contain '..' nor end in '.' or '.lock', got {name!r:.120}")
    return name


def name_after(filename: str, part_mark: str = "") -> str:
    """The dataset's name for a file that is given without one. Raises InvalidConfig if none can be made of it.

    Args:
        part_mark: what is added to the name of one part of a file, which is refused otherwise.
    """
    base = plain_filename(filename)
    suffix = find_file_suffix(base) or ""
    name = _OTHERS.sub("-", base[: len(base) - len(suffix)].lstrip(".")).strip("-._")[:MAX_CHARACTERS].rstrip("-._")
    name = re.sub(r"\.{2,}", ".", name)
    if part_mark and read_part_name(name):
        name = name[: MAX_CHARACTERS - len(part_mark)].rstrip("-._") + part_mark
    try:
        return check_name(name)
    except InvalidConfig as error:
        raise InvalidConfig(
            f"name: none can be made of the file's name {base!r:.120}; give one, or rename the file"
        ) from error


def plain_filename(filename: str) -> str:
    """The last part of a file's name, whichever system's separators it has."""
    return PurePosixPath(filename.replace("\\", "/")).name


def read_filename(filename: str, field: str = "file") -> str:
    """The last part of a file's name, as it is recorded. Raises InvalidConfig for one that can't be recorded whole."""
    name = plain_filename(filename)
    if len(name) > MAX_FILENAME:
        raise InvalidConfig(
            f"{field} must have a name of at most {MAX_FILENAME} characters, it has {len(name)}; rename the file"
        )
    if not name.isprintable():
        raise InvalidConfig(f"{field} must have a name of printable characters, got {name!r:.120}")
    return name


def find_suffix(filename: str, field: str = "file") -> str:
    """The suffix by which a file's kind is known. Raises InvalidConfig for a file of another kind."""
    suffix = find_file_suffix(filename)
    if suffix is None:
        raise InvalidConfig(f"{field} must end in one of {', '.join(FILE_SUFFIXES)}, got {filename!r:.120}")
    return suffix


def choose_name(name: str | None, filename: str) -> str:
    """The dataset's name: the given one, or one made of the file's. Raises InvalidConfig."""
    return name_after(filename) if name is None else check_name(name)


def read_version(text: str) -> int | None:
    """The number of a version such as `v3`; None for other text."""
    found = _VERSION.fullmatch(text)
    return int(found[1]) if found else None


def write_file_id(digest: str) -> str:
    """The id of a file in OpenAI's interface, from a hexadecimal digest; a version's is made from its commit."""
    return f"file-{digest[:24]}"
