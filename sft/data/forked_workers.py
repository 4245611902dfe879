"""Maps a function over items in forked processes, in order: what comes out does not depend on their number."""

import gc
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from sft.confinement import Limits, charge, confined_alone, explain_end, explain_error, open_note, share_limits
from sft.errors import StackError, TuneyardError
from sft.parent_death import request_parent_death_signal

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4  # items a process that may be done before the first that is not: bounds the memory of waiting results
_END: Any = object()


def count_cores() -> int:
    """Number of cores that this process may use; 1 where processes can't be forked safely (other than Linux)."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1


def map_ordered(work: Callable[[Item], Result], items: Iterable[Item], processes: int) -> Generator[Result, None, None]:
    """Yield `work(item)` for each item, in their order, computed by so many forked processes (one: by this one).

    Each process has the caller's memory as it was at the start, and its share of the limits of `sft.confinement`; its
    CPU time counts as the caller's. The error of the first item that has one is raised. The processes end with the
    generator, and with this process.

    Raises:
        ResourceLimit: a process was ended by an input.
        StackError: a process was ended by something else.
    """
    if processes == 1:
        yield from map(work, items)
        return
    workers: list[_Worker] = []
    try:
        limits = share_limits(processes)
        for _ in range(processes):
            workers.append(_Worker(work, limits))
        yield from _deal(workers, iter(items))
    finally:
        for worker in workers:
            worker.end()


def _deal(workers: "list[_Worker]", items: Iterator[Any]) -> Iterator[Any]:
    """Send items to idle workers, and yield the results in order."""
    idle, busy = list(workers), dict[Any, tuple[_Worker, int]]()
    done: dict[int, tuple[str, Any]] = {}
    sent = given = 0
    is_at_end = False
    while not is_at_end or busy or done:
        while idle and not is_at_end and sent < given + AHEAD * len(workers):
            item = next(items, _END)
            if item is _END:
                is_at_end = True
                break
            worker = idle.pop()
            worker.send(item)
            busy[worker.connection] = worker, sent
            sent += 1
        if given in done:
            kind, value = done.pop(given)
            given += 1
            if kind == "error":
                raise value
            yield value
            continue
        for ready in wait(list(busy)):
            worker, number = busy.pop(ready)
            done[number] = worker.receive()
            idle.append(worker)


class _Worker:
    """A forked process that computes one item at a time."""

    def __init__(self, work: Callable[[Any], Any], limits: Limits | None) -> None:
        self.note = open_note()
        self.connection, theirs = get_context("fork").Pipe()
        self.cpu_seconds = 0.0
        arguments = (work, theirs, self.connection, self.note, limits, os.getpid())
        self.process = get_context("fork").Process(target=_serve, args=arguments, daemon=True)
        with warnings.catch_warnings():  # Python warns of forking beside threads; the child uses none of theirs
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        theirs.close()

    def send(self, item: Any) -> None:
        try:
            self.connection.send(item)
        except OSError as error:
            raise self._explain() from error

    def receive(self) -> tuple[str, Any]:
        try:
            kind, value, cpu_seconds = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._explain() from error
        charge(cpu_seconds - self.cpu_seconds)
        self.cpu_seconds = cpu_seconds
        return kind, value

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.connection.close()
        os.close(self.note)

    def _explain(self) -> Exception:
        self.process.join()
        code = self.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return explain_end(code, self.note) or StackError(
            f"a process that reads the rows was ended by {how}, for lack of memory perhaps"
        )


def _serve(
    work: Callable[[Any], Any], calls: Connection, others: Connection, note: int, limits: Limits | None, parent: int
) -> None:
    """In the child: compute items until the parent is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    if not request_parent_death_signal(signal.SIGKILL, parent):
        return
    others.close()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are as many as the cores
    gc.disable()  # a tenth of the time; garbage is collected after each item
    gc.freeze()  # collections would touch, and so copy, the parent's memory
    with confined_alone(limits, note):
        while True:
            try:
                item = calls.recv()
            except (EOFError, OSError):
                return
            calls.send((*_compute(work, item), time.process_time()))
            del item
            gc.collect()


def _compute(work: Callable[[Any], Any], item: Any) -> tuple[str, Any]:
    try:
        return "result", work(item)
    except BaseException as error:
        problem = explain_error(error)
        if problem is None and not isinstance(error, Exception):
            raise
        error.__traceback__ = None  # its frames hold memory
        return "error", problem or (error if isinstance(error, TuneyardError) else RuntimeError(repr(error)))
