"""Manifests in a shared store: the list of files of each folder."""

import json
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime

Files = dict[str, tuple[str, int]]  # SHA-256 and bytes of each file, by its path in the folder
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Damaged(ValueError):
    """Content in the store differs from what was stored."""


@dataclass(frozen=True)
class Kept:
    """A folder in the store: its place, when it was completed, and its files."""

    url: str
    time: datetime
    files: Files

    @property
    def bytes(self) -> int:
        """Total size of all files."""
        return sum(size for _, size in self.files.values())


def render_list(files: Files) -> bytes:
    """Render the list of these files, with the current time."""
    return json.dumps({"time": datetime.now(UTC).isoformat(), "files": files}, indent=2).encode()


def read_list(content: bytes, url: str) -> Kept:
    """Read the list of the folder at this URL. Raises Damaged if it names anything but files in a folder."""
    try:
        listed = json.loads(content)
        files = {str(key): (str(digest), int(size)) for key, (digest, size) in listed["files"].items()}
        time = datetime.fromisoformat(listed["time"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise Damaged(f"the list of files of {url} can't be read") from error
    if outside := next((key for key in files if ".." in key.split("/") or key.startswith("/")), None):
        raise Damaged(f"{url} names a file outside its folder: {outside}")
    for key, (digest, size) in files.items():
        if not _is_file_name(key) or not _DIGEST.fullmatch(digest) or size < 0:
            raise Damaged(f"{url} names no file by {key!r}")
    return Kept(url, time, files)


def _is_file_name(name: str) -> bool:
    """Whether it names a file in a folder, as its path in POSIX form."""
    try:
        is_known = b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return is_known and not {"", ".", ".."}.intersection(name.split("/"))
