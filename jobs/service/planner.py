"""`Planner`: has plans made by a process of its own, which is kept ready, and forks for each plan."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.errors import PlanningFailed
from jobs.keeper import NOTE, PARENT
from jobs.scratch import lending_scratch, make_scratch
from jobs.service.turns import Turns
from jobs.settings import PROJECT_ROOT, Settings
from sft.config import SFTConfig
from sft.confinement import explain_end, open_note
from sft.errors import find_error
from sft.files.places import find_temporary
from sft.files.temporary_folders import LockedFolder

TIMEOUT_SECONDS = 120.0
AT_ONCE = 2
APART = 2  # beside those, for clients none of whose plans is made: one whose plans take long holds up nobody else's
POLL_SECONDS = 0.2
START_SECONDS = 30.0
LONGEST_FOLDER = 60
COMMAND = (sys.executable, "-m", "tasks.plan")


class PlanCancelled(Exception):
    """Nobody waits for this plan any more."""


class Planner:
    """Plans, at most `at_once` at a time for one client; others wait their turn (`jobs.service.turns`). Thread-safe.

    The planner process starts with the first plan, or with `start`, and holds some 500 MB until `close`. It ends
    by itself when this process does.
    """

    def __init__(self, at_once: int = AT_ONCE, timeout_seconds: float = TIMEOUT_SECONDS, apart: int = APART) -> None:
        self.timeout_seconds = timeout_seconds
        self._turns = Turns(at_once, apart)
        self._lock = threading.Lock()
        self._is_closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._scratch: LockedFolder | None = None

    def start(self) -> None:
        """Have the planner process load its libraries, unless it runs already or the planner is closed.

        Raises PlanningFailed where there is no place for its socket.
        """
        with self._lock:
            if self._is_closed:
                return
            if self._process is not None and self._process.poll() is None:
                return
            self._clear()
            place = find_temporary()
            is_short = len(os.fsencode(place)) <= LONGEST_FOLDER  # a socket's path is limited
            try:
                self._scratch = make_scratch("planner", place if is_short else Path("/tmp"))  # noqa: S108
            except OSError as error:
                raise PlanningFailed(
                    f"the planner process needs a temporary folder ({error}); free some space"
                ) from error
            self._process = subprocess.Popen(
                [*COMMAND, "--serve", str(self._socket_path())],
                cwd=PROJECT_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=[self._scratch.lock],
                start_new_session=True,  # Ctrl-C is for the API; it closes stdin, which ends the planner
            )

    def close(self) -> None:
        """End the planner process and the plans at work; no more can be made."""
        with self._lock:
            self._is_closed = True
            self._clear()

    def plan(
        self,
        config: SFTConfig,
        settings: Settings,
        is_cancelled: Callable[[], bool] = lambda: False,
        client: str = "",
    ) -> dict[str, Any]:
        """What a job of this configuration would take on this machine.

        Args:
            settings: with the addresses of the stack; past jobs are read from its database.
            is_cancelled: asked several times a second.
            client: for whom; each has turns of its own.

        Raises:
            PlanCancelled: `is_cancelled` said so; the plan's process is ended.
            PlanningFailed: no answer within `timeout_seconds`, or the planner can't run on this machine.
            TuneyardError: what would fail the job.
        """
        deadline = time.monotonic() + self.timeout_seconds
        with (
            self._turns.taken(client, lambda: self._check(deadline, is_cancelled)),
            self._connect(deadline, is_cancelled) as connection,
        ):
            connection.sendall(write_request(config, settings))
            return read_answer(self._receive(connection, deadline, is_cancelled))

    def _connect(self, deadline: float, is_cancelled: Callable[[], bool]) -> socket.socket:
        """A connection to the planner process, which is started if need be and waits for requests at once."""
        self.start()
        if self._is_closed:
            raise PlanningFailed("the service is stopping")
        started_at = time.monotonic()
        is_second = False
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self._socket_path()))
            except OSError as error:
                connection.close()
                process = self._process
                has_ended = process is None or process.poll() is not None
                if has_ended and not is_second:  # it was about to end when it was looked at
                    is_second = True
                    self.start()
                    continue
                if has_ended or time.monotonic() - started_at > START_SECONDS:
                    raise PlanningFailed(
                        f"the planner process did not start ({error}); see the service's log"
                    ) from error
                self._check(deadline, is_cancelled)
                time.sleep(POLL_SECONDS / 4)
            else:
                return connection

    def _receive(self, connection: socket.socket, deadline: float, is_cancelled: Callable[[], bool]) -> bytes:
        """All that comes until the planner hangs up."""
        received = bytearray()
        while True:
            self._check(deadline, is_cancelled)
            if not select.select([connection], [], [], POLL_SECONDS)[0]:
                continue
            try:
                part = connection.recv(2**16)
            except ConnectionError:
                part = b""
            if not part:
                return bytes(received)
            received += part

    def _check(self, deadline: float, is_cancelled: Callable[[], bool]) -> None:
        if is_cancelled():
            raise PlanCancelled
        if time.monotonic() > deadline:
            raise PlanningFailed(f"no plan within {self.timeout_seconds:g} s; the machine may be busy, try again later")

    def _socket_path(self) -> Path:
        return Path(self._scratch.folder if self._scratch else "", "planner.sock")

    def _clear(self) -> None:
        if self._process is not None:
            if self._process.stdin:
                self._process.stdin.close()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()
            self._process = None
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None


def plan_once(config: SFTConfig, settings: Settings) -> dict[str, Any]:
    """A plan by a process that is started for it and ends with it. Raises as `Planner.plan`."""
    note = open_note()
    try:
        with lending_scratch("single-plan") as (more, handles):
            done = subprocess.run(
                COMMAND,
                cwd=PROJECT_ROOT,
                env=os.environ | {PARENT: str(os.getpid()), NOTE: str(note)} | more,
                input=write_request(config, settings),
                stdout=subprocess.PIPE,
                pass_fds=[note, *handles],
                check=False,
            )
        if problem := explain_end(done.returncode, note):
            raise problem
    finally:
        os.close(note)
    return read_answer(done.stdout)


def write_request(config: SFTConfig, settings: Settings) -> bytes:
    """A request as one line."""
    return json.dumps({"config": config.to_dict(), "settings": settings.model_dump(mode="json")}).encode() + b"\n"


def read_answer(received: bytes) -> dict[str, Any]:
    """The plan. Raises the error that stands in its place."""
    try:
        answer = json.loads(received)
    except ValueError as error:
        raise PlanningFailed("the planner process ended without an answer; see the service's log") from error
    if "error" in answer:
        raise find_error(answer["error"]["code"])(answer["error"]["detail"])
    plan: dict[str, Any] = answer["plan"]
    return plan
