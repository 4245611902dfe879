"""Child processes that make plans, one per connection: they end with it, at their limits, or with this process."""

import contextlib
import json
import logging
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from jobs.keeper import NOTE, PARENT
from jobs.scratch import SCRATCH
from sft.confinement import explain_end, open_note
from sft.errors import DiskFull, TuneyardError
from sft.parent_death import request_parent_death_signal

logger = logging.getLogger(__name__)

ENDED_BY = "the plan's process was ended by {}; see the service's log"


@dataclass(eq=False)
class PlanChild:
    """A process that makes a plan. `alive` becomes readable when it has ended."""

    pid: int
    connection: socket.socket
    note: int
    alive: int
    folder: Path  # for its temporary files


class PlanChildren:
    """Forks for each connection. The caller selects, and passes what is ready to `settle`.

    Args:
        answer: turns a request, one line, into the response.
        inherited: sockets to close in each child.
        place: where each child gets a folder for temporary files, as a killed child removes none itself.
        begin_anew: called in the child; returns a command that turns its stdin, the request, into the response on its
            stdout, if the child can't do so itself.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        answer: Callable[[str], str],
        inherited: list[socket.socket],
        place: Path,
        begin_anew: Callable[[], list[str] | None] = lambda: None,
    ) -> None:
        self._selector = selector
        self._answer = answer
        self._inherited = inherited
        self._place = place
        self._begin_anew = begin_anew
        self._children: set[PlanChild] = set()

    def start(self, connection: socket.socket) -> None:
        """Fork a process that serves this connection, and watch both."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="plan-", dir=self._place))
        except OSError as error:
            problem = DiskFull(f"a plan needs a temporary folder ({error}); free some space there")
            _send_error(connection, problem.code, problem)
            connection.close()
            return
        note = open_note()
        alive, held = os.pipe()
        here = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_child(connection, (note, held), here, folder)
        os.close(held)  # held by the child only from here on
        child = PlanChild(pid, connection, note, alive, folder)
        self._children.add(child)
        self._selector.register(connection, selectors.EVENT_READ, child)
        self._selector.register(alive, selectors.EVENT_READ, child)

    def settle(self, child: PlanChild) -> None:
        """Kill the child if its connection has ended, and clean up if the child has ended."""
        if child not in self._children:
            return
        has_ended = _is_at_end(child.alive)
        if not has_ended:
            if not _has_hung_up(child.connection):
                return
            _kill(child.pid)
        _, status = os.waitpid(child.pid, 0)
        if has_ended and (code := os.waitstatus_to_exitcode(status)):
            self._explain(child, code)
        self._let_go(child)

    def end_all(self) -> None:
        """Kill all of them."""
        for child in [*self._children]:
            _kill(child.pid)
            os.waitpid(child.pid, 0)
            self._let_go(child)

    def _explain(self, child: PlanChild, ended_with: int) -> None:
        problem = explain_end(ended_with, child.note)
        how = signal.Signals(-ended_with).name if ended_with < 0 else f"exit code {ended_with}"
        logger.warning("A plan's process was ended by %s: %s", how, problem)
        told = problem or TuneyardError(ENDED_BY.format(how))
        code = told.code if problem else "planning_failed"
        _send_error(child.connection, code, told)

    def _let_go(self, child: PlanChild) -> None:
        self._children.discard(child)
        self._selector.unregister(child.connection)
        self._selector.unregister(child.alive)
        child.connection.close()
        os.close(child.alive)
        os.close(child.note)
        shutil.rmtree(child.folder, ignore_errors=True)

    def _become_child(self, connection: socket.socket, kept: tuple[int, int], parent: int, folder: Path) -> None:
        """In the child: send one response and exit, whatever happens. `kept`: its note, and the end of `alive`."""
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if not request_parent_death_signal(signal.SIGKILL, parent):
                os._exit(1)
            for one in (*self._inherited, *(other.connection for other in self._children)):
                one.close()  # otherwise they would stay open as long as this process
            os.environ[NOTE] = str(kept[0])
            tempfile.tempdir = str(folder)
            if command := self._begin_anew():
                os.environ |= {PARENT: str(parent), SCRATCH: str(folder)}
                _become(command, connection, kept)
            with connection, connection.makefile("r", encoding="utf-8") as lines:
                connection.sendall(self._answer(lines.readline()).encode() + b"\n")
        except BaseException:
            logger.exception("A plan could not be made")
        finally:
            sys.stderr.flush()
            os._exit(0)


def _become(command: list[str], connection: socket.socket, kept: tuple[int, int]) -> NoReturn:
    """Replace this process by the command, with the connection as its stdin and stdout."""
    for standard in (0, 1):
        os.dup2(connection.fileno(), standard)
    for descriptor in kept:
        os.set_inheritable(descriptor, True)
    os.execv(command[0], command)  # noqa: S606 - replaces this process


def _send_error(connection: socket.socket, code: str, error: TuneyardError) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps({"error": {"code": code, "detail": str(error)}}).encode() + b"\n")


def _has_hung_up(connection: socket.socket) -> bool:
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _is_at_end(pipe: int) -> bool:
    os.set_blocking(pipe, False)
    try:
        return os.read(pipe, 1) == b""
    except BlockingIOError:
        return False


def _kill(pid: int) -> None:
    """Kill the child and its children."""
    for kill in (os.killpg, os.kill):  # it may not have its own process group yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)
