"""Importing torch and the libraries that build on it, which takes seconds."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

USUAL_THRESHOLDS = (700, 10, 10)  # Python's own


@contextmanager
def without_collecting() -> Iterator[None]:
    """Turn garbage collection off for imports: it takes one of the seven seconds of importing torch and its users.

    Imported objects are then frozen, so that later collections skip them, and forked processes share their memory.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*USUAL_THRESHOLDS)  # `python -m flows` raised them at its start
        gc.enable()
