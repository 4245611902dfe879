"""A git repository, asked by git's own program for no longer and no more than a request can bear."""

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, cast

SECONDS = 3.0
LARGEST = 16 * 2**20  # bytes of all that it says; 100,000 names of files have 6 MB
WAIT_SECONDS = 1.0  # for a process that was killed; one that hangs in a file system may not end
DROPPED = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


class NotKnown(Exception):
    """git takes too long, says too much or fails."""


class Repository:
    """One look at a repository: its commands share the time and the bytes that are allowed.

    Every method raises NotKnown, and OSError where git can't be run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._deadline = time.monotonic() + SECONDS
        self._bytes_left = LARGEST

    def say(self, *arguments: str) -> str:
        """What a command prints."""
        code, said = self.run(*arguments)
        if code:
            raise NotKnown(f"git {arguments[0]} ended with {code}")
        return said

    def run(self, *arguments: str) -> tuple[int, str]:
        """A command's exit code and what it prints, without the last line's end."""
        code, said = self._run(arguments)
        return code, said.decode("utf-8", "replace").strip("\n")

    def read_files(self, commit: str, paths: list[str], max_bytes: int) -> Iterator[tuple[str, bytes]]:
        """These files' contents at a commit, by one process. A file beyond `max_bytes` is NotKnown."""
        asked = [path for path in paths if "\n" not in path]
        with TemporaryFile() as stdin:
            stdin.write("".join(f"{commit}:{path}\n" for path in asked).encode("utf-8", "replace"))
            stdin.seek(0)
            _, said = self._run(("cat-file", "--batch"), stdin)
        at = 0
        for path in asked:
            end = said.index(b"\n", at)
            *_, size = said[at:end].split(b" ")
            at = end + 1
            if not size.isdigit():  # missing: a submodule's, say
                continue
            if int(size) > max_bytes:
                raise NotKnown(f"{path} has more than {max_bytes} bytes")
            yield path, said[at : at + int(size)]
            at += int(size) + 1
            self.check_time()

    def check_time(self) -> None:
        """Raises NotKnown when it is over."""
        if time.monotonic() >= self._deadline:
            raise NotKnown("the repository takes too long")

    def _run(self, arguments: tuple[str, ...], stdin: IO[bytes] | None = None) -> tuple[int, bytes]:
        environment = {name: value for name, value in os.environ.items() if name not in DROPPED}
        environment |= {"GIT_CEILING_DIRECTORIES": str(self.folder.parent), "GIT_TERMINAL_PROMPT": "0"}
        environment |= {"GIT_NO_LAZY_FETCH": "1"}  # what is not here is not fetched now
        process = subprocess.Popen(
            ["git", "-C", str(self.folder), *arguments],
            stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # it is ended with what it has started
        )
        try:
            with cast(IO[bytes], process.stdout) as pipe:
                said = self._read(pipe)
            return process.wait(max(0.0, self._deadline - time.monotonic())), said
        except (NotKnown, subprocess.TimeoutExpired) as error:
            raise NotKnown(f"git {arguments[0]}: {error}") from error
        finally:
            _end(process)

    def _read(self, pipe: IO[bytes]) -> bytes:
        said = bytearray()
        while True:
            self.check_time()
            if not select.select([pipe], [], [], self._deadline - time.monotonic())[0]:
                continue
            part = os.read(pipe.fileno(), 2**16)
            if not part:
                return bytes(said)
            said += part
            self._bytes_left -= len(part)
            if self._bytes_left < 0:
                raise NotKnown("it says too much")


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(WAIT_SECONDS)
