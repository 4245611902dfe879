"""The local stack's process manager: one supervisord daemon per state folder, controlled over its unix socket."""

import hashlib
import http.client
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from supervisor.xmlrpc import SupervisorTransport

from jobs.privacy import UMASK
from sft.errors import StackError

MARK = "TUNEYARD_STACK"  # environment variable with the state folder, inherited by every process of a stack
LONGEST_SOCKET_PATH = 100  # of 104 or 108 allowed
PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")
LOG_BYTES = 5_000_000
ALIVE_STATES = ("STARTING", "RUNNING")


@dataclass(frozen=True)
class StackPart:
    """How to run one process of the stack."""

    name: str
    command: Sequence[str]
    priority: int  # stopped from the highest to the lowest
    stop_signal: str = "TERM"
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Process:
    """supervisord's state of a part; `started_at` is in epoch seconds, 0 if it never ran."""

    name: str
    state: str
    pid: int | None
    started_at: float


def run_folder(home: Path) -> Path:
    """The folder of a process manager's socket and configuration: in the state folder, or under /tmp.

    The latter if the state folder's path is too long for a socket, or has characters with a meaning in supervisord's
    file or in a URL.

    Raises:
        StackError: that folder belongs to another user.
    """
    if _is_plain(home):
        return home / "run"
    digest = hashlib.sha256(os.fsencode(home)).hexdigest()[:12]
    folder = Path("/tmp") / f"tuneyard-{os.getuid()}-{digest}"  # noqa: S108 - TMPDIR differs between processes
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return folder
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise StackError(f"{folder} belongs to another user; remove it or set TUNEYARD_HOME to a shorter, plain path")
    return folder


def plain_home(home: Path) -> Path:
    """A path to the state folder with plain characters and short enough for sockets: its own, or a link.

    For programs that read paths as a pattern, a URL or a list. The link exists while the stack runs.
    """
    return home if _is_plain(home) else run_folder(home) / "home"


def make_run_folder(home: Path) -> Path:
    """Create a new, private run folder with the link that `plain_home` may need."""
    folder = run_folder(home)
    folder.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    (folder / "tmp").mkdir(mode=0o700)
    if plain_home(home) != home:
        (folder / "home").unlink(missing_ok=True)
        (folder / "home").symlink_to(home)
    return folder


def _is_plain(home: Path) -> bool:
    longest = max(len(str(home / name)) for name in ("postgres/.s.PGSQL.5432", "run/supervisor.sock.1234567"))
    return PLAIN_PATH.fullmatch(str(home)) is not None and longest <= LONGEST_SOCKET_PATH


def log_path(home: Path, name: str) -> Path:
    """The log of one part; supervisord rotates it."""
    return home / "logs" / f"{name}.log"


class Supervisor:
    """The daemon of one state folder, running or not."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.run = run_folder(home)
        self.socket = self.run / "supervisor.sock"
        self.config = self.run / "supervisord.conf"

    def _call(self, method: str, *arguments: object) -> object:
        transport = SupervisorTransport(None, None, f"unix://{self.socket}")
        try:
            return getattr(xmlrpc.client.ServerProxy("http://localhost", transport=transport).supervisor, method)(
                *arguments
            )
        finally:
            transport.close()

    def processes(self) -> dict[str, Process]:
        """Every part by name; empty when no daemon answers."""
        try:
            infos = self._call("getAllProcessInfo")
        except (OSError, http.client.HTTPException):
            return {}
        assert isinstance(infos, list)  # noqa: S101 - narrows XML-RPC's answer
        return {
            info["name"]: Process(info["name"], info["statename"], info["pid"] or None, float(info["start"]))
            for info in infos
        }

    def pid(self) -> int | None:
        """The daemon's own process, if it answers."""
        try:
            return int(str(self._call("getPID")))
        except (OSError, http.client.HTTPException):
            return None

    def launch(self, parts: Sequence[StackPart], environment: Mapping[str, str]) -> None:
        """Start the daemon with these parts, none of them running yet. Raises StackError with what it said."""
        self.socket.unlink(missing_ok=True)
        (self.home / "logs").mkdir(mode=0o700, exist_ok=True)
        self.config.touch(mode=0o600)
        self.config.write_text(render_config(self.home, self.run, parts), encoding="utf-8")
        command = [sys.executable, "-m", "supervisor.supervisord", "-c", str(self.config)]
        done = subprocess.run(  # the daemon detaches once its socket is open
            command,
            env={**environment, MARK: str(self.home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=60,
            umask=UMASK,
        )
        if done.returncode or not self.processes():
            raise StackError(f"supervisord did not start: {(done.stderr or done.stdout).strip()}")

    def start(self, name: str) -> None:
        """Start one part and return at once; a part that already runs is left alone."""
        try:
            self._call("startProcess", name, False)
        except xmlrpc.client.Fault as fault:
            if "ALREADY_STARTED" not in fault.faultString:
                raise StackError(f"{name} could not be started: {fault.faultString}") from fault

    def stop(self, name: str) -> None:
        """Stop one part and wait for it; a part that does not run is left alone."""
        try:
            self._call("stopProcess", name, True)
        except xmlrpc.client.Fault as fault:
            if "NOT_RUNNING" not in fault.faultString:
                raise StackError(f"{name} could not be stopped: {fault.faultString}") from fault

    def shut_down(self, timeout_seconds: float = 60) -> None:
        """Stop every part in reverse order and the daemon itself, and wait until it is gone."""
        pid = self.pid()
        if pid is None:
            return
        self._call("shutdown")
        deadline = time.monotonic() + timeout_seconds
        while time.monotonic() < deadline and psutil.pid_exists(pid):
            time.sleep(0.05)


def render_config(home: Path, run: Path, parts: Sequence[StackPart]) -> str:
    """supervisord's configuration file. Secrets are not in it: parts inherit the daemon's environment.

    Raises:
        StackError: a command has a line break in it, which the file can't hold.
    """
    home = plain_home(home)
    sections: dict[str, dict[str, object]] = {
        "unix_http_server": {"file": run / "supervisor.sock", "chmod": "0700"},
        "rpcinterface:supervisor": {
            "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
        },
        "supervisord": {
            "logfile": log_path(home, "supervisord"),
            "logfile_maxbytes": LOG_BYTES,
            "logfile_backups": 1,
            "pidfile": run / "supervisord.pid",
            "directory": home,
            "minfds": 256,
            "umask": f"{UMASK:03o}",
            **({"user": "root"} if os.getuid() == 0 else {}),  # else it warns that it is root
        },
    }
    for part in parts:
        sections[f"program:{part.name}"] = {
            "command": " ".join(map(quote_word, part.command)),
            "priority": part.priority,
            "autostart": "false",
            "autorestart": "true",
            "startsecs": 10,
            "startretries": 10,
            "stopsignal": part.stop_signal,
            "stopwaitsecs": 15,
            "stopasgroup": "true",
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": log_path(home, part.name),
            "stdout_logfile_maxbytes": LOG_BYTES,
            "stdout_logfile_backups": 1,
            "environment": ",".join(f'{name}="{value}"' for name, value in part.environment.items()),
        }
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        for name, value in values.items():
            if "\n" in str(value) or "\r" in str(value):
                raise StackError(f"{str(value)!r} has a line break; install Tuneyard in a folder without one")
            lines.append(f"{name} = {value}")
    return "\n".join(lines) + "\n"


def quote_word(word: str) -> str:
    """One word of a command as supervisord reads it: its file's `%`, comments and blanks, then a shell's quoting."""
    return re.sub(r"([^A-Za-z0-9/._=,:@+-])", r"\\\1", word).replace("%", "%%") or "''"


def stack_processes(home: Path) -> list[psutil.Process]:
    """Every process on this machine that was started by this state folder's stack, grandchildren included."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == str(home) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):  # gone, or another user's
            continue
    return [process for process in found if process.pid != os.getpid()]


def kill_processes(processes: Sequence[psutil.Process], timeout_seconds: float = 20) -> None:
    """End these for certain: PostgreSQL by its fast shutdown and last, everything else at once.

    Raises:
        StackError: one of them outlived even SIGKILL.
    """
    databases = [process for process in processes if process.is_running() and process.name() == "postgres"]
    others = [process for process in processes if process not in databases]
    for process in others:
        _kill(process)
    psutil.wait_procs(others, timeout_seconds)
    for process in databases:
        process.send_signal(2)
    _, stuck = psutil.wait_procs(databases, timeout_seconds)
    for process in stuck:
        _kill(process)
    _, alive = psutil.wait_procs([*others, *stuck], timeout_seconds)
    if alive:
        raise StackError(f"processes {[process.pid for process in alive]} of the stack can't be stopped")


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
