"""Has the kernel signal this process when its parent dies."""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1
# Looked up here and not when called: nothing is to be loaded between a fork and an exec.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def request_parent_death_signal(number: int, parent: int) -> bool:
    """Have the kernel send this process a signal when its parent dies (on Linux).

    Args:
        number: of the signal.
        parent: pid of the parent.

    Returns:
        Whether the parent still is there. The kernel does not report one that died before this call.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, number)
    return os.getppid() == parent
