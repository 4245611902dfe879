"""The machine that a run has for itself: namespaces in which processes, network and mounts end with it."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence

INSIDE = "TUNEYARD_POOL_INSIDE"  # set for the process within
OWN = ("--net", "--ipc", "--uts", "--pid", "--mount")
DIE = ("--fork", "--kill-child=KILL", "--mount-proc")  # with the process that has made them


def find_obstacle() -> str | None:
    """Why hosts can't be made of namespaces here; None if they can."""
    if missing := [
        program for program in ("unshare", "nsenter", "ip", "mount", "setpriv") if not shutil.which(program)
    ]:
        return f"{', '.join(missing)} not found"
    trial = "ip link set lo up && ip link add name a0 type bridge && ip link add a1 type veth peer name a2 && "
    trial += "mount -t tmpfs none /mnt && hostname trial && unshare --net --pid --mount --fork --mount-proc true"
    done = subprocess.run([*_enter(), "sh", "-c", trial], capture_output=True, encoding="utf-8", check=False)
    return None if done.returncode == 0 else done.stderr.strip() or f"unshare ends with {done.returncode}"


def run_inside(command: Sequence[str]) -> int:
    """Run a command in namespaces of its own; its exit code. Whatever it has started ends with it, or with this one."""
    watched = ["setpriv", "--pdeathsig", "KILL", *_enter(), *command]
    process = subprocess.Popen(watched, env=os.environ | {INSIDE: "1"}, start_new_session=True)
    try:
        return process.wait()
    except BaseException:  # stopped: the first process of the namespaces takes all others with it
        process.kill()
        process.wait()
        raise


def prepare() -> None:
    """Called first by the process within: gives it a loopback device and a shared memory of its own."""
    _call("ip", "link", "set", "lo", "up")
    _call("mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm")
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def _enter() -> list[str]:
    # As an ordinary user one is given the rights within a namespace of users, and stays oneself.
    rights = [] if os.geteuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    return ["unshare", *rights, *OWN, *DIE]


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
