"""Run git commands on a repository, with limits on time and output that suit a request."""

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
MAX_OUTPUT_BYTES = 16 * 2**20  # of all commands; 100,000 file names take 6 MB
WAIT_SECONDS = 1.0  # for the end of a killed process, which may hang in a file system
DROPPED = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")


class NotKnown(Exception):
    """git fails, or exceeds a limit."""


class Repository:
    """One look-up in a repository, whose commands share the limits.

    Every method raises NotKnown, and OSError if git can't be run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._deadline = time.monotonic() + SECONDS
        self._bytes_left = MAX_OUTPUT_BYTES

    def output_of(self, *arguments: str) -> str:
        """Run a command; returns its output. Raises NotKnown also if it fails."""
        code, output = self.run(*arguments)
        if code:
            raise NotKnown(f"git {arguments[0]} failed with exit code {code}")
        return output

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run a command; returns its exit code and output, without the final line break."""
        code, output = self._run(arguments)
        return code, output.decode("utf-8", "replace").strip("\n")

    def read_files(self, commit: str, paths: list[str], max_bytes: int) -> Iterator[tuple[str, bytes]]:
        """Read files at a commit, with one process. Raises NotKnown for a file larger than `max_bytes`."""
        wanted = [path for path in paths if "\n" not in path]
        with TemporaryFile() as stdin:
            stdin.write("".join(f"{commit}:{path}\n" for path in wanted).encode("utf-8", "replace"))
            stdin.seek(0)
            _, output = self._run(("cat-file", "--batch"), stdin)
        at = 0
        for path in wanted:
            end = output.index(b"\n", at)
            *_, size = output[at:end].split(b" ")
            at = end + 1
            if not size.isdigit():  # missing, such as a submodule's file
                continue
            if int(size) > max_bytes:
                raise NotKnown(f"{path} has more than {max_bytes} bytes")
            yield path, output[at : at + int(size)]
            at += int(size) + 1
            self.check_time()

    def check_time(self) -> None:
        """Raises NotKnown once the time is over."""
        if time.monotonic() >= self._deadline:
            raise NotKnown(f"no result within {SECONDS:g} s")

    def _run(self, arguments: tuple[str, ...], stdin: IO[bytes] | None = None) -> tuple[int, bytes]:
        environment = {name: value for name, value in os.environ.items() if name not in DROPPED}
        environment |= {"GIT_CEILING_DIRECTORIES": str(self.folder.parent), "GIT_TERMINAL_PROMPT": "0"}
        environment |= {"GIT_NO_LAZY_FETCH": "1"}  # do not fetch missing objects
        process = subprocess.Popen(
            ["git", "-C", str(self.folder), *arguments],
            stdin=stdin or subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # it is killed together with its children
        )
        try:
            with cast(IO[bytes], process.stdout) as pipe:
                output = self._read(pipe)
            return process.wait(max(0.0, self._deadline - time.monotonic())), output
        except (NotKnown, subprocess.TimeoutExpired) as error:
            raise NotKnown(f"git {arguments[0]}: {error}") from error
        finally:
            _end(process)

    def _read(self, pipe: IO[bytes]) -> bytes:
        output = bytearray()
        while True:
            self.check_time()
            if not select.select([pipe], [], [], self._deadline - time.monotonic())[0]:
                continue
            part = os.read(pipe.fileno(), 2**16)
            if not part:
                return bytes(output)
            output += part
            self._bytes_left -= len(part)
            if self._bytes_left < 0:
                raise NotKnown(f"more than {MAX_OUTPUT_BYTES} bytes of output")


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(WAIT_SECONDS)
