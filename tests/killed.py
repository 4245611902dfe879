"""A process of its own that is killed at a chosen step of what it does."""

import os
import signal
import sys
from collections.abc import Callable
from itertools import count
from typing import Any

STEPS = ("open", "os.", "shutil.", "fcntl.")  # beginnings of the events of Python's that count as steps


def run_killed(work: Callable[[], Any], step: int) -> bool:
    """Fork, work there and be killed before this step with files; False where it came to its end before."""
    pid = os.fork()
    if pid == 0:
        numbers, is_counting = count(), [True]

        def kill(event: str, _arguments: tuple[Any, ...]) -> None:
            if is_counting and event.startswith(STEPS) and next(numbers) == step:
                is_counting.clear()
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.addaudithook(kill)
            work()
        finally:
            is_counting.clear()
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL


def kill_at_each_step(work: Callable[[], Any], check: Callable[[], Any], most: int = 400) -> int:
    """Kill this work at its first step, at its second and so on, and check each time; how many steps it has."""
    for step in range(most):
        if not run_killed(work, step):
            return step
        check()
    raise AssertionError(f"more than {most} steps")
