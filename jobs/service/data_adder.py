"""`DataAdder`: check a file and publish it as a version of a dataset, in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from uuid import UUID

from jobs.errors import AddingFailed
from jobs.keeper import NOTE, PARENT
from jobs.own_data.naming import choose_name, find_suffix, read_filename
from jobs.own_data.registry import Published
from jobs.own_data.staging import noticing_full_disk
from jobs.own_data.version import DataVersion
from jobs.scratch import lending_scratch
from jobs.service.fair_slots import FairSlots
from jobs.settings import PROJECT_ROOT, Settings
from sft.confinement import explain_end, open_note
from sft.errors import find_error

AT_ONCE = 2  # processes of one client; publishing itself is done by one at a time
RESERVED = 2  # further ones for clients without a running one
POLL_SECONDS = 0.1
SECONDS, SECONDS_A_MEGABYTE = 900.0, 2.0  # until a process is ended, whatever it waits for
COMMAND = (sys.executable, "-m", "tasks.add_data")
CPU_LIMIT = "TUNEYARD_INPUT_SECONDS"  # in messages; a small file has a lower one (`tasks.add_data`)


class AddingCancelled(Exception):
    """The client no longer waits."""


@dataclass(frozen=True)
class NewFile:
    """A file to add.

    Attributes:
        path: the file, in a `staging_folder`; it is moved into the registry, or stays there if it is refused.
        filename: as the user calls it; its suffix says what the file is.
        name: of the dataset; made from the file's name if None.
        owner: the API key that adds it; None if none is required.
        may_extend_all: whether it may become a version of a dataset of any owner, as for admin keys and without keys.
        sha256: of the content, if it is known.
        suffix: by which the reader knows what the file is; that of the file's name if None.
    """

    path: Path
    filename: str
    name: str | None = None
    owner: UUID | None = None
    may_extend_all: bool = True
    sha256: str | None = None
    suffix: str | None = None

    def checked(self) -> "NewFile":
        """With its name, and its path under a name that the reader knows. Raises InvalidConfig."""
        filename = read_filename(self.filename)
        name = choose_name(self.name, filename)
        suffix = self.suffix or find_suffix(filename)
        path = self.path.with_name(f"{name}{suffix}")
        if path != self.path:
            self.path.rename(path)
        return replace(self, path=path, filename=filename, name=name)


class DataAdder:
    """Add files, at most `at_once` at a time for one client; others wait (`FairSlots`). Thread-safe."""

    def __init__(self, at_once: int = AT_ONCE, reserved: int = RESERVED) -> None:
        self._slots = FairSlots(at_once, reserved)

    def add(
        self,
        file: NewFile,
        settings: Settings,
        is_cancelled: Callable[[], bool] = lambda: False,
        client: str = "",
    ) -> Published:
        """Check a file and publish it: complete, or not at all if it is refused or this process is killed.

        Args:
            is_cancelled: called several times a second.
            client: that slots are counted for.

        Raises:
            AddingCancelled: `is_cancelled` returned True.
            InvalidConfig: the name or the file's suffix is not valid.
            InvalidDataset: the file can't be read, or has no row that is an object.
            NameTaken: the name is another key's, or that of a dataset in the configured registry or of a file.
            ResourceLimit: it takes more time or memory to read than is allowed.
            DiskFull: there is no space for it.
            StackError: the registry or the store can't be reached.
        """
        file = file.checked()
        deadline = time.monotonic() + SECONDS + SECONDS_A_MEGABYTE * file.path.stat().st_size / 2**20

        def check() -> None:
            if is_cancelled():
                raise AddingCancelled
            if time.monotonic() > deadline:
                raise AddingFailed("file: it could not be checked in time; the machine may be busy, try again later")

        with self._slots.taken(client, check):
            return _run(file, settings, check)


def _run(file: NewFile, settings: Settings, check: Callable[[], None]) -> Published:
    note = open_note()
    try:
        with (
            noticing_full_disk(file.path.parent),
            TemporaryFile(dir=file.path.parent) as request,
            TemporaryFile(dir=file.path.parent) as response,
            lending_scratch("adding") as (more, handles),
        ):
            request.write(_write_request(file, settings))
            request.seek(0)
            process = subprocess.Popen(
                COMMAND,
                cwd=PROJECT_ROOT,
                env=os.environ | {PARENT: str(os.getpid()), NOTE: str(note)} | more,
                stdin=request,
                stdout=response,
                pass_fds=[note, *handles],
                start_new_session=True,  # Ctrl-C must not reach it
            )
            try:
                _wait(process, check)
            finally:
                _end(process)
            if problem := explain_end(process.returncode, note):
                said = str(problem).replace("dataset_name: ", "file: ")
                raise type(problem)(said.replace(CPU_LIMIT, f"{CPU_LIMIT}, or too much for a file of its size"))
            response.seek(0)
            return _read_response(response.read())
    finally:
        os.close(note)


def _wait(process: "subprocess.Popen[bytes]", check: Callable[[], None]) -> None:
    while True:
        with suppress(subprocess.TimeoutExpired):
            process.wait(POLL_SECONDS)
            return
        check()


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _write_request(file: NewFile, settings: Settings) -> bytes:
    plain = {"path": str(file.path), "owner": file.owner and str(file.owner)}
    return json.dumps({"file": vars(file) | plain, "settings": settings.model_dump(mode="json")}).encode()


def _read_response(received: bytes) -> Published:
    try:
        response = json.loads(received)
    except ValueError as error:
        raise AddingFailed("file: its check ended without a result; see the service's log") from error
    if "error" in response:
        raise find_error(response["error"]["code"])(response["error"]["detail"])
    return Published(DataVersion.from_json(json.dumps(response["version"]), response["commit"]), response["is_new"])
