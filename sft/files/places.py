"""Names that somebody gave, followed no further than they may lead."""

import os
import stat
from collections.abc import Iterable
from pathlib import Path


def find_temporary() -> Path:
    """The temporary folder by its name: for a full one `tempfile.gettempdir` takes another, the working folder say."""
    named = next(filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP"))), "/tmp")  # noqa: S108
    return Path(named).resolve()


def follow(name: str, root: Path, further: Iterable[Path] = ()) -> Path | None:
    """Where `name` leads from `root`, links followed, whether there is something or not.

    None when that is neither in `root` nor in one of the `further` folders, or is not a name a file can have.
    """
    try:
        found = (root / name).resolve()
        found.exists()  # a name that is too long is refused here, not by whoever opens it
    except (OSError, ValueError, RuntimeError):  # a NUL character is a ValueError, a circle of links a RuntimeError
        return None
    return found if _is_in(found, (root, *further)) else None


def find_way_out(folder: Path, further: Iterable[Path] = ()) -> Path | None:
    """A link below `folder`, at any depth, that leads neither into it nor into one of the `further` folders."""
    roots = (folder, *further)
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink() and not _is_in(path.resolve(), roots):
                return path
    return None


def is_special(path: Path) -> bool:
    """Whether there is neither a file nor a folder at the path but a pipe, a socket or a device.

    To open a pipe waits for somebody who writes into it, for ever.
    """
    return path.exists() and not path.is_file() and not path.is_dir()


def find_foreign(path: Path, root: Path) -> Path | None:
    """The first folder on the way from `root` down to `path` that another account may put links into; None if none.

    That is one that belongs neither to this account nor to the system's, or that everybody may write to.
    """
    for folder in reversed([path, *path.parents]):
        if folder == root or not folder.is_relative_to(root):
            continue
        try:
            found = folder.lstat()
        except OSError:  # not there yet, or not to be seen: it is made by this account, or refused
            return None
        if found.st_uid not in (0, os.getuid()) or found.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            return folder
    return None


def is_opened_in(handle: int, root: Path) -> bool:
    """Whether an open file lies in `root`, whatever links led to it when it was opened.

    Taken for granted where the system (other than Linux) does not say where an open file lies.
    """
    try:
        found = Path(f"/proc/self/fd/{handle}").readlink()
    except OSError:
        return True
    return _is_in(found, (root,))


def _is_in(path: Path, roots: Iterable[Path]) -> bool:
    return any(path.is_relative_to(root.resolve()) for root in roots)
