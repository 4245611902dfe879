"""Which files this process opens, lists, makes, moves or deletes outside of where it may: Python's own audit events."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# By event, which of its arguments are paths.
PATHS = {
    "open": (0,),
    "os.listdir": (0,),
    "os.scandir": (0,),
    "os.mkdir": (0,),
    "os.rmdir": (0,),
    "os.remove": (0,),
    "os.rename": (0, 1),
    "os.link": (0, 1),
    "os.symlink": (1,),
    "os.truncate": (0,),
    "os.chmod": (0,),
    "os.chown": (0,),
    "os.utime": (0,),
    "os.chdir": (0,),
    "os.walk": (0,),
    "os.fwalk": (0,),
    "glob.glob": (0,),
    "pathlib.Path.glob": (0,),
    "pathlib.Path.rglob": (0,),
    "shutil.copyfile": (0, 1),
    "shutil.copymode": (0, 1),
    "shutil.copystat": (0, 1),
    "shutil.copytree": (0, 1),
    "shutil.move": (0, 1),
    "shutil.rmtree": (0,),
    "shutil.make_archive": (1, 2),
    "shutil.unpack_archive": (0, 1),
    "tempfile.mkdtemp": (0,),
    "tempfile.mkstemp": (0,),
    "sqlite3.connect": (0,),
    "ctypes.dlopen": (0,),
}
KEPT = ("preflight",)  # names of threads that the product keeps for its next work
LISTING = ("os.listdir", "os.scandir", "os.walk", "glob.glob", "pathlib.Path.glob", "pathlib.Path.rglob", "os.chdir")


class Watcher:
    """Hooks can't be taken away again, so there is one, which is asleep but within `watching`."""

    def __init__(self) -> None:
        self._allowed: tuple[str, ...] | None = None
        self._found: list[str] = []
        self._others: set[int | None] = set()  # threads of other tests
        self._is_installed = False

    @contextmanager
    def watching(self, *allowed: Path) -> Iterator[list[str]]:
        """The list fills with `event path` for each one outside these folders, the interpreter and its libraries."""
        if not self._is_installed:
            sys.addaudithook(self._hear)
            self._is_installed = True
        own = (sys.prefix, sys.base_prefix, Path(__file__).parents[2])
        self._found = []
        before = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
        self._others = {thread.ident for thread in before if thread.name not in KEPT}
        self._allowed = tuple(os.path.realpath(folder) for folder in (*own, *allowed))
        try:
            yield self._found
        finally:
            self._allowed = None

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        allowed = self._allowed
        if allowed is None or event not in PATHS or threading.get_ident() in self._others:
            return
        for position in PATHS[event]:
            path = arguments[position] if position < len(arguments) else None
            if not isinstance(path, str | bytes | os.PathLike):
                continue  # a file descriptor, opened before
            text = os.fsdecode(path)
            self._allowed = None  # what happens in here is not meant
            try:
                place = os.path.realpath(text) if "\0" not in text else text
            finally:
                self._allowed = allowed
            if not any(place == folder or place.startswith(folder + os.sep) for folder in allowed):
                self._found.append(f"{event} {text!r}")
