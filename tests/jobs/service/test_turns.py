"""Turns: in order, together what waited together, and everybody gets his own result or error."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from jobs.service.turns import Turns
from sft.errors import StackError
from tests.conftest import wait_until


class Worker:
    """Squares numbers; the first turn lasts until `go`."""

    def __init__(self, at_most=10):
        self.batches = []
        self.go = threading.Event()
        self.turns = Turns(self.work, lambda waiting: min(len(waiting), at_most))

    def work(self, batch):
        self.batches.append([ticket.wanted for ticket in batch])
        if len(self.batches) == 1:
            assert self.go.wait(120)
        for ticket in batch:
            if ticket.wanted == "all":
                raise StackError("all fail")
            if ticket.wanted == "one":
                ticket.error = ValueError("this one fails")
            else:
                ticket.result = ticket.wanted**2

    def waiting(self):
        return [ticket.wanted for ticket in self.turns._waiting]


@pytest.fixture
def pool():
    with ThreadPoolExecutor(20) as pool:
        yield pool


def start(pool, worker, wanted):
    """Have each of these asked for, one after the other, while the first is at work."""
    started = [pool.submit(worker.turns.take, wanted[0])]
    wait_until(lambda: worker.batches == [[wanted[0]]], 60)
    for index, one in enumerate(wanted[1:], 1):
        started.append(pool.submit(worker.turns.take, one))
        wait_until(lambda index=index: len(worker.waiting()) == index, 60)
    worker.go.set()
    return started


def test_what_waited_is_done_together_in_order(pool):
    worker = Worker(at_most=4)
    assert [one.result(60) for one in start(pool, worker, [*range(8)])] == [number**2 for number in range(8)]
    assert worker.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_an_error_is_that_of_its_own_or_of_the_whole_turn(pool):
    worker = Worker(at_most=3)
    started = start(pool, worker, [0, 1, "one", 3, 4, "all", 6, 7])
    assert [started[index].result(60) for index in (0, 1, 3, 7)] == [0, 1, 9, 49]
    with pytest.raises(ValueError, match="this one fails"):
        started[2].result(60)
    for index in (4, 5, 6):
        with pytest.raises(StackError, match="all fail"):
            started[index].result(60)
    assert worker.turns.take(3) == 9


def test_who_waits_too_long_is_told_and_nothing_is_done_for_him(pool):
    worker = Worker()
    first = pool.submit(worker.turns.take, 1)
    wait_until(lambda: worker.batches == [[1]], 60)
    with pytest.raises(StackError, match="for other submissions; send the request again"):
        worker.turns.take(2, timeout_seconds=0.05)
    worker.go.set()
    assert (first.result(60), worker.turns.take(3), worker.batches) == (1, 9, [[1], [3]])
