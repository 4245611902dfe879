"""Resolves paths given by users and rejects those that leave the allowed roots."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path


def find_temporary() -> Path:
    """The configured temporary folder; if it is full, `tempfile.gettempdir` would silently choose another one."""
    named = next(filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), "/tmp")  # noqa: S108
    return Path(named).resolve()


def follow(name: str, root: Path, further: Iterable[Path] = ()) -> Path | None:
    """Resolve `name` below `root`, following links; the path need not exist.

    None if the result is neither in `root` nor in one of the `further` folders, or is not a valid path.
    """
    try:
        found = (root / name).resolve()
        found.exists()  # refuse a name that is too long here, not when it is opened
    except (OSError, ValueError, RuntimeError):  # a NUL character is a ValueError, a loop of links a RuntimeError
        return None
    return found if _is_in(found, (root, *further)) else None


def find_way_out(folder: Path, further: Iterable[Path] = ()) -> Path | None:
    """Find a link below `folder`, at any depth, that leads out of it and of the `further` folders."""
    roots = (folder, *further)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and not _is_in(path.resolve(), roots):
                return path
    return None


def is_special(path: Path) -> bool:
    """Whether the path is a pipe, a socket or a device.

    Opening a pipe blocks until a writer opens it, possibly for ever.
    """
    return path.exists() and not path.is_file() and not path.is_dir()


def find_foreign(path: Path, root: Path) -> Path | None:
    """The first folder between `root` and `path` in which another account may create links; None if none.

    That is a folder owned by neither this account nor root, or writable by everybody.
    """
    for folder in reversed([path, *path.parents]):
        if folder == root or not folder.is_relative_to(root):
            continue
        try:
            found = folder.lstat()
        except OSError:  # it does not exist yet or is not readable: this account makes it, or fails to
            return None
        if found.st_uid not in (0, os.getuid()) or found.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            return folder
    return None


def is_opened_in(handle: int, root: Path) -> bool:
    """Whether an open file lies in `root`, whichever links led to it.

    True on systems (other than Linux) that do not reveal an open file's path.
    """
    try:
        found = Path(f"/proc/self/fd/{handle}").readlink()
    except OSError:
        return True
    return _is_in(found, (root,))


def _is_in(path: Path, roots: Iterable[Path]) -> bool:
    return any(path.is_relative_to(root.resolve()) for root in roots)
