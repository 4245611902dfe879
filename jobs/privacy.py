"""Keeps the service's files private to its account.

Each of our processes creates files for its own account only, whatever library writes them. A state folder made by an
earlier version is made private when the stack starts.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

UMASK = 0o077
OTHERS = 0o077  # permissions of group and others


def keep_private() -> None:
    """Set the umask so that this process and its children create private files and folders."""
    os.umask(UMASK)


def tighten(folder: Path) -> int:
    """Remove other accounts' permissions from a folder of ours and all in it; returns how many entries had some.

    The folder itself comes first, which already protects the rest. Links are not followed. Files with further hard
    links, which may be shared on purpose, and files of other accounts keep their permissions.
    """
    if not is_ours_alone(folder):
        return 0
    return sum(_close(path) for path in (folder, *_walk(folder)))


def is_ours_alone(folder: Path) -> bool:
    """Whether a folder may be the service's own: not a system, temporary or home folder."""
    found = folder.lstat()
    shared = found.st_mode & stat.S_ISVTX or folder.resolve() in (Path("/"), Path.home().resolve())
    return stat.S_ISDIR(found.st_mode) and not shared and found.st_uid in (os.geteuid(), 0)


def find_open(folder: Path) -> Iterator[Path]:
    """Yield what other accounts can open in a folder, skipping folders that are closed to them."""
    try:
        mode = folder.stat().st_mode
    except OSError:
        return
    if mode & OTHERS:
        yield folder
        for path in _walk(folder, is_reachable=True):
            if path.lstat().st_mode & OTHERS:
                yield path


def _walk(folder: Path, is_reachable: bool = False) -> Iterator[Path]:
    """Yield everything below a folder except links; with `is_reachable` skip folders closed to others."""
    try:
        entries = [*os.scandir(folder)]
    except OSError:  # gone, or not ours to look into
        return
    for entry in entries:
        if entry.is_symlink():
            continue
        path = Path(entry.path)
        yield path
        if entry.is_dir(follow_symlinks=False):
            try:
                is_closed = not entry.stat(follow_symlinks=False).st_mode & OTHERS
            except OSError:
                continue
            if not (is_reachable and is_closed):
                yield from _walk(path, is_reachable)


def _close(path: Path) -> bool:
    """Make a path private; returns whether it was open. Does not follow a link that replaces it meanwhile."""
    try:
        held = os.open(path, getattr(os, "O_PATH", os.O_RDONLY | os.O_NONBLOCK) | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # gone meanwhile, or not ours
        return False
    try:
        found = os.fstat(held)
        is_elsewhere = stat.S_ISREG(found.st_mode) and found.st_nlink > 1
        if stat.S_ISLNK(found.st_mode) or is_elsewhere or not found.st_mode & OTHERS:
            return False
        mode = stat.S_IMODE(found.st_mode) & ~OTHERS
        if hasattr(os, "O_PATH"):
            Path(f"/proc/self/fd/{held}").chmod(mode)
        else:
            os.fchmod(held, mode)
    except OSError:
        return False
    finally:
        os.close(held)
    return True
