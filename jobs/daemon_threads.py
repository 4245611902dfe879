"""Threads for calls that may hang: reused for later calls, and not joined when the process exits."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class DaemonThreads:
    """As many threads as calls are running at once. Thread-safe; the caller limits their number.

    At exit, `ThreadPoolExecutor` would wait for calls that hang.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._idle = threading.Semaphore(0)

    def start(self, call: Callable[[], T]) -> Future[T]:
        """Run `call` on an idle thread or a new one; the future has its result or exception.

        Raises RuntimeError if no thread can be started; the call has not begun then.
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
