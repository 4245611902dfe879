"""`python -m tasks.vllm_keeper COMMAND...`: runs a command until stdin is closed, and leaves none of its processes.

This process leads the group in which the command and its children are. Whether the process that started it ends in any
way, or the command does, the kernel then ends the whole group, this process too. If this process alone is killed, the
command is as well (on Linux); the rest of the group is ended by the one that started it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Run the command in the arguments."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None

    def end_with_parent() -> None:
        if library is not None:
            library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)
    threading.Thread(target=end_after, args=(process.wait,), daemon=True).start()
    end_after(sys.stdin.buffer.read)


def end_after(wait: Callable[[], object]) -> None:
    """Kill all processes of this group once a wait is over."""
    wait()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
