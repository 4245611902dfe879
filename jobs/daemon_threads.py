"""Threads for calls that may hang: kept for later calls, and no process waits for them at its end."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads:
    """As many threads as calls are running at once. Thread-safe; it is the caller who limits their number.

    `ThreadPoolExecutor` would have the process wait for calls that hang.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def start(self, call: Callable[[], T]) -> Future[T]:
        """Run `call` on a thread that is idle, or on a new one; the future has its result or what it raised.

        Raises RuntimeError when there is neither: the call has not begun then.
        """
        future: Future[T] = Future()
        if self._idle.acquire(blocking=False):
            self._calls.put((future, call))
        else:
            threading.Thread(target=self._work, args=(future, call), name=self._name, daemon=True).start()
        return future

    def _work(self, future: Future[Any], call: Callable[[], Any]) -> None:
        while True:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del future, call  # nothing of it is kept while the thread is idle
            self._idle.release()
            future, call = self._calls.get()
