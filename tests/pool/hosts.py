"""Hosts of a pool: each has its own name, disk, processes and network, and can be lost as a machine is."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from tests.pool import host_init

HOST = "TUNEYARD_POOL_HOST"  # in the environment of every process of a host: its name
NETWORK = "10.213.0"
BRIDGE = "pool"
PLAIN = Path(__file__).with_name("plain")
GONE_SECONDS = 20.0


class Host(Protocol):
    """A machine of the pool."""

    name: str
    address: str  # at which the others reach it
    root: Path  # its disk, as its own processes see it
    can_be_cut: bool
    launched: list[subprocess.Popen[bytes]]

    def start(self) -> None:
        """Turn it on, with what its disk has."""

    def launch(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process there. `environment` is all that it gets; the log is not on the host's disk."""

    def signal(self, launched: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """Send a signal to a process that was launched here."""

    def find_processes(self) -> list[psutil.Process]:
        """All that run there."""

    def kill(self) -> None:
        """The power fails: nothing of it runs any more."""

    def cut(self) -> None:
        """Nothing it sends arrives, and nothing reaches it."""

    def heal(self) -> None:
        """The network is back."""


class Site:
    """The place where the hosts of one run are."""

    def __init__(self, folder: Path, has_namespaces: bool) -> None:
        self.folder = folder
        self.disks = folder / "disks"
        self.disks.mkdir()
        self._mount_point = folder / "host"
        self._has_namespaces = has_namespaces
        self._count = 0
        self.address = f"{NETWORK}.1" if has_namespaces else "127.0.0.1"  # of servers outside of the hosts
        self.network = f"{NETWORK}.0/24" if has_namespaces else "127.0.0.0/8"
        if has_namespaces:
            self._mount_point.mkdir()
            _call("ip", "link", "add", "name", BRIDGE, "type", "bridge")
            _call("ip", "addr", "add", f"{self.address}/24", "dev", BRIDGE)
            _call("ip", "link", "set", BRIDGE, "up")

    @property
    def image_root(self) -> Path:
        """Where what is to be on the disk of every host is made, by the path it has there."""
        return self._mount_point if self._has_namespaces else self.folder / "shared"

    def make_host(self, name: str) -> Host:
        """Another host with an empty disk; not started."""
        self._count += 1
        disk = self.disks / name
        disk.mkdir()
        if self._has_namespaces:
            return NamespaceHost(name, f"{NETWORK}.{10 + self._count}", disk, self._mount_point)
        return PlainHost(name, disk)

    def erase(self, host: Host) -> None:
        """Delete all that is on the host's disk."""
        disk = self.disks / host.name
        for path in disk.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


class NamespaceHost:
    """A host with a name, a process table, a network device and a mounted disk of its own."""

    can_be_cut = True

    def __init__(self, name: str, address: str, disk: Path, mount_point: Path) -> None:
        self.name = name
        self.address = address
        self.root = mount_point
        self.launched = []
        self._disk = disk
        self._starts = 0
        self._unshare: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def start(self) -> None:
        """Make the namespaces and connect them with the bridge."""
        command = ["unshare", "--net", "--ipc", "--uts", "--pid", "--mount", "--fork", "--kill-child=KILL"]
        command += ["--mount-proc", sys.executable, "-IS", host_init.__file__]
        command += [self.name, str(self._disk), str(self.root), str(self._disk.parent)]
        self._unshare = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._unshare.stdout is not None
        if self._unshare.stdout.readline() != b"ready\n":
            raise RuntimeError(f"host {self.name} did not start")
        (first,) = psutil.Process(self._unshare.pid).children()
        self._pid = first.pid
        self._starts += 1
        self._device = f"v{self.address.rpartition('.')[2]}n{self._starts}"
        _call("ip", "link", "add", self._device, "type", "veth", "peer", "name", "eth0", "netns", str(self._pid))
        _call("ip", "link", "set", self._device, "up", "master", BRIDGE)
        _call("nsenter", "-t", str(self._pid), "-n", "ip", "addr", "add", f"{self.address}/24", "dev", "eth0")
        _call("nsenter", "-t", str(self._pid), "-n", "ip", "link", "set", "eth0", "up")

    def launch(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process in all of the host's namespaces; the one returned waits for it."""
        inside = ["nsenter", "-t", str(self._pid), "-n", "-i", "-u", "-p", "-m", f"--wd={self.root}", "--", *command]
        self.launched.append(_launch(inside, {**environment, HOST: self.name}, log))
        return self.launched[-1]

    def signal(self, launched: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """`nsenter` waits for the process, which is its child."""
        with suppress(psutil.Error):
            signal_all(psutil.Process(launched.pid).children(), number)

    def find_processes(self) -> list[psutil.Process]:
        """Those in its namespace of processes, the first one included."""
        mine = _read_namespace(self._pid)
        return [process for process in psutil.process_iter() if mine and _read_namespace(process.pid) == mine]

    def kill(self) -> None:
        """Kill its first process; the kernel kills the others."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        for process in self.launched:  # each `nsenter` has to wait for its child: it stops with it, or is about to
            while process.poll() is None:
                process.send_signal(signal.SIGCONT)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(0.1)
        self.launched.clear()
        if self._unshare is not None:
            self._unshare.wait()

    def cut(self) -> None:
        """Take its device from the bridge."""
        _call("ip", "link", "set", self._device, "nomaster")

    def heal(self) -> None:
        """Put it back."""
        _call("ip", "link", "set", self._device, "master", BRIDGE)


class PlainHost:
    """Processes with a folder and a host name of their own, where there are no namespaces. Its network can't be cut."""

    can_be_cut = False

    def __init__(self, name: str, disk: Path) -> None:
        self.name = name
        self.address = "127.0.0.1"
        self.root = disk
        self.launched = []

    def start(self) -> None:
        """Nothing has to be made."""

    def launch(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process that Python gives the host's name."""
        path = os.pathsep.join(filter(None, [str(PLAIN), environment.get("PYTHONPATH", "")]))
        inside = {**environment, HOST: self.name, "PYTHONPATH": path}
        self.launched.append(_launch(list(command), inside, log, self.root))
        return self.launched[-1]

    def signal(self, launched: subprocess.Popen[bytes], number: signal.Signals) -> None:
        """It is the process itself."""
        launched.send_signal(number)

    def find_processes(self) -> list[psutil.Process]:
        """Those that have inherited its name."""
        return [process for process in psutil.process_iter() if _read_variable(process, HOST) == self.name]

    def kill(self) -> None:
        """Kill them, until there are no more."""
        until = time.monotonic() + GONE_SECONDS
        while (found := self.find_processes()) and time.monotonic() < until:
            signal_all(found, signal.SIGKILL)
            psutil.wait_procs(found, timeout=1)
        for process in self.launched:
            process.wait()
        self.launched.clear()

    def cut(self) -> None:
        """Never called."""
        raise NotImplementedError

    def heal(self) -> None:
        """Never called."""
        raise NotImplementedError


def freeze(host: Host) -> None:
    """Stop all its processes, as a paused virtual machine; those they start meanwhile too."""
    told: set[psutil.Process] = set()
    while running := [process for process in host.find_processes() if not _is_stopped(process, process in told)]:
        signal_all(running, signal.SIGSTOP)
        told.update(running)
        time.sleep(0.01)
    # `nsenter`, which isn't among them, stops with its child a moment later; thawed before, it would stay stopped.
    for outside in {process.pid for process in host.launched} - {process.pid for process in told}:
        while _is_waiting_for_stopped(outside):
            time.sleep(0.01)


def thaw(host: Host) -> None:
    """Let them go on."""
    signal_all(host.find_processes(), signal.SIGCONT)
    for process in host.launched:  # `nsenter` stops with its child
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)


def signal_all(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to those that are there still."""
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


def _is_stopped(process: psutil.Process, was_told: bool) -> bool:
    stopped = {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}
    if was_told:  # it stops before it does anything more; after `vfork` only when its child goes on, which has stopped
        stopped.add(psutil.STATUS_DISK_SLEEP)
    try:
        return process.status() in stopped
    except psutil.Error:  # gone
        return True


def _is_waiting_for_stopped(pid: int) -> bool:
    try:
        waiting = psutil.Process(pid)
        if waiting.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            return False
        return any(child.status() == psutil.STATUS_STOPPED for child in waiting.children())
    except psutil.Error:  # gone
        return False


def _launch(
    command: list[str], environment: Mapping[str, str], log: Path, folder: Path | None = None
) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            command, env=dict(environment), cwd=folder, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip


def _read_namespace(pid: int) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - the link leads nowhere
    except OSError:  # gone
        return None


def _read_variable(process: psutil.Process, name: str) -> str | None:
    try:
        found = process.environ().get(name)
    except (psutil.Error, OSError):  # gone
        return None
    return str(found) if found is not None else None


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
