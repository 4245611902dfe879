"""Processes to be killed: forked, so that they need not load the training libraries again."""

import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress


def start_child(work: Callable[[], object]) -> int:
    """The id of a process that does this and then ends, with status 1 when it raises."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)  # nothing of the tests' own is wound up here


def kill_child(child: int) -> int:
    """End it with SIGKILL wherever it is; its status, as `os.waitstatus_to_exitcode` gives it."""
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return wait_for_child(child)


def wait_for_child(child: int) -> int:
    """Its status once it has ended."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
