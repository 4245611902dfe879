"""`python -m tasks.vllm_keeper COMMAND...`: runs a command until stdin is closed, and leaves none of its processes.

This process leads the group in which the command and its children are. Whether the process that started it ends in any
way, or the command does, the kernel then ends the whole group, this process too. If this process alone is killed, the
command is as well (on Linux); the rest of the group is ended by the one that started it.
"""

import functools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable

from sft.parent_death import request_parent_death_signal


def main() -> None:
    """Run the command in the arguments."""
    end_with_this = functools.partial(request_parent_death_signal, signal.SIGKILL, os.getpid())
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, preexec_fn=end_with_this)
    threading.Thread(target=end_after, args=(process.wait,), daemon=True).start()
    end_after(sys.stdin.buffer.read)


def end_after(wait: Callable[[], object]) -> None:
    """Kill all processes of this group once a wait is over."""
    wait()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
