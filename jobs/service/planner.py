"""`Planner`: make plans in a separate process, which is kept ready and forks for each plan."""

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobs.errors import PlanningFailed
from jobs.keeper import NOTE, PARENT
from jobs.scratch import lending_scratch
from jobs.service.fair_slots import FairSlots
from jobs.service.socket_process import SocketProcess, has_ended
from jobs.settings import PROJECT_ROOT, Settings
from sft.config import SFTConfig
from sft.confinement import explain_end, open_note
from sft.errors import find_error

TIMEOUT_SECONDS = 120.0
AT_ONCE = 2
RESERVED = 2  # further slots for clients without a running plan, so that slow plans do not delay other clients
POLL_SECONDS = 0.2
START_SECONDS = 30.0
COMMAND = (sys.executable, "-m", "tasks.plan")


class PlanCancelled(Exception):
    """The client no longer waits for the plan."""


class Planner(SocketProcess):
    """Make plans, at most `at_once` at a time for one client; others wait (`FairSlots`). Thread-safe.

    The planner process starts with the first plan, or with `start`, and uses some 500 MB until `close`. It ends
    when this process does.
    """

    def __init__(
        self, at_once: int = AT_ONCE, timeout_seconds: float = TIMEOUT_SECONDS, reserved: int = RESERVED
    ) -> None:
        super().__init__("planner", PlanningFailed)
        self.timeout_seconds = timeout_seconds
        self._slots = FairSlots(at_once, reserved)

    def _command(self, path: Path) -> list[str]:
        return [*COMMAND, "--serve", str(path)]

    def plan(
        self,
        config: SFTConfig,
        settings: Settings,
        is_cancelled: Callable[[], bool] = lambda: False,
        client: str = "",
        device: str | None = None,
    ) -> dict[str, Any]:
        """Estimate a job with this configuration on this machine.

        If the planner process is killed meanwhile, the plan is begun once more in another one.

        Args:
            settings: With the addresses of the stack; past jobs are read from its database.
            is_cancelled: Called several times a second.
            client: The client that slots are counted for.
            device: Name of another device to plan for.

        Raises:
            PlanCancelled: `is_cancelled` returned True; the plan's process is ended.
            PlanningFailed: no plan within `timeout_seconds`, or the planner can't run on this machine.
            TuneyardError: an error that would fail the job.
        """
        plan: dict[str, Any] = self._ask(write_request(config, settings, device), is_cancelled, client)
        return plan

    def show_rows(
        self, wanted: dict[str, Any], settings: Settings, is_cancelled: Callable[[], bool], client: str = ""
    ) -> list[dict[str, Any]]:
        """The first rows of a file, rendered if `wanted` names a model (`tasks.show_rows`). Raises as `plan` does."""
        request = {"rows": wanted, "settings": settings.model_dump(mode="json")}
        rows: list[dict[str, Any]] = self._ask(json.dumps(request).encode() + b"\n", is_cancelled, client)
        return rows

    def _ask(self, request: bytes, is_cancelled: Callable[[], bool], client: str) -> Any:
        deadline = time.monotonic() + self.timeout_seconds
        with self._slots.taken(client, lambda: self._check(deadline, is_cancelled)):
            received, process = self._ask_once(request, deadline, is_cancelled)
            if not received and has_ended(process):
                received, _ = self._ask_once(request, deadline, is_cancelled)
            return read_response(received)

    def _ask_once(
        self, request: bytes, deadline: float, is_cancelled: Callable[[], bool]
    ) -> tuple[bytes, subprocess.Popen[bytes] | None]:
        """The response, empty if the connection was closed without one, and the process that was asked."""
        with self._connect(deadline, is_cancelled) as connection:
            process = self._process
            with contextlib.suppress(ConnectionError):
                connection.sendall(request)
            return self._receive(connection, deadline, is_cancelled), process

    def _connect(self, deadline: float, is_cancelled: Callable[[], bool]) -> socket.socket:
        """Connect to the planner process; start it if it is not running."""
        self.start()
        if self._is_closed:
            raise PlanningFailed("the service is stopping")
        started_at = time.monotonic()
        was_restarted = False
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(str(self._socket_path()))
            except OSError as error:
                connection.close()
                process = self._process
                has_ended = process is None or process.poll() is not None
                if has_ended and not was_restarted:  # it ended just after `start` found it running
                    was_restarted = True
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
        """Read until the planner closes the connection."""
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


def plan_once(config: SFTConfig, settings: Settings, device: str | None = None) -> dict[str, Any]:
    """Make a plan in a process of its own. Raises like `Planner.plan`."""
    note = open_note()
    try:
        with lending_scratch("single-plan") as (more, handles):
            done = subprocess.run(
                COMMAND,
                cwd=PROJECT_ROOT,
                env=os.environ | {PARENT: str(os.getpid()), NOTE: str(note)} | more,
                input=write_request(config, settings, device),
                stdout=subprocess.PIPE,
                pass_fds=[note, *handles],
                check=False,
            )
        if problem := explain_end(done.returncode, note):
            raise problem
    finally:
        os.close(note)
    plan: dict[str, Any] = read_response(done.stdout)
    return plan


def write_request(config: SFTConfig, settings: Settings, device: str | None = None) -> bytes:
    """Encode a request as one line."""
    request = {"config": config.to_dict(), "settings": settings.model_dump(mode="json"), "device": device}
    return json.dumps(request).encode() + b"\n"


def read_response(received: bytes) -> Any:
    """Decode a plan. Raises the error in the response, or PlanningFailed if there is none."""
    try:
        response = json.loads(received)
    except ValueError as error:
        raise PlanningFailed("the planner process ended without a response; see the service's log") from error
    if "error" in response:
        raise find_error(response["error"]["code"])(response["error"]["detail"])
    return response["plan"]
