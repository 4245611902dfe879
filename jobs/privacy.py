"""What other accounts of the machine may see of a service's files: nothing.

Each process of ours creates files for its own account only, whatever library writes them. A state folder from before
that is closed when the stack starts.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

UMASK = 0o077
OTHERS = 0o077  # rights of the group and of everybody else


def keep_private() -> None:
    """From here on this process, and what it starts, makes files and folders that only its account can open."""
    os.umask(UMASK)


def tighten(folder: Path) -> int:
    """Take the rights of other accounts from a folder of ours and all in it; how many had some.

    The folder itself comes first, which closes the way to the rest. Links are not followed, and a file that has another
    name elsewhere, which may be somebody's on purpose, keeps its rights, as does what belongs to somebody else.
    """
    if not is_ours_alone(folder):
        return 0
    return sum(_close(path) for path in (folder, *_walk(folder)))


def is_ours_alone(folder: Path) -> bool:
    """Whether a folder can be one that was made for the service: not a system's, a temporary or a home folder."""
    found = folder.lstat()
    shared = found.st_mode & stat.S_ISVTX or folder.resolve() in (Path("/"), Path.home().resolve())
    return stat.S_ISDIR(found.st_mode) and not shared and found.st_uid in (os.geteuid(), 0)


def find_open(folder: Path) -> Iterator[Path]:
    """What other accounts can open in a folder, or reach it by; nothing below a folder that is closed to them."""
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
    """All below a folder but links; with `is_reachable` not what is below a closed folder."""
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
    """Whether it was open and is not any more; a link that is put in its place meanwhile is not followed."""
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
