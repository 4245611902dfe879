"""The first process of a host made of namespaces: `python -IS host_init.py NAME DISK MOUNT HIDDEN`.

Mounts the host's disk, hides those of the others, and reaps processes whose parents have ended. The host ends with it.
"""

import os
import signal
import socket
import subprocess
import sys


def main() -> None:
    """Run until killed; a line on stdout says that the host is there."""
    name, disk, mount_point, hidden = sys.argv[1:]
    socket.sethostname(name)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    for command in (
        ["mount", "--bind", disk, mount_point],
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", hidden],
        ["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm"],
        ["ip", "link", "set", "lo", "up"],
    ):
        subprocess.run(command, check=True)
    print("ready", flush=True)
    os.close(0)
    os.close(1)
    while True:
        signal.sigwait({signal.SIGCHLD})
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            continue


if __name__ == "__main__":
    main()
