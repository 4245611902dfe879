"""Turns of several clients, some of whose work never ends."""

import threading

import pytest

from jobs.service.fair_slots import FairSlots
from tests.conftest import wait_until


class Worker:
    """Somebody who takes a turn and keeps it until told to end."""

    def __init__(self, slots, client):
        self.has_turn, self.end = threading.Event(), threading.Event()
        self._turns, self._client = slots, client
        self._thread = threading.Thread(target=self._work)
        self._thread.start()

    def _work(self):
        with self._turns.taken(self._client, lambda: None):
            self.has_turn.set()
            self.end.wait(120)

    def waits(self):
        return not self.has_turn.wait(0.3)

    def begins(self):
        return self.has_turn.wait(60)

    def finish(self):
        self.end.set()
        self._thread.join(60)


@pytest.fixture
def line():
    """Begins workers, and ends them all."""
    slots, workers = FairSlots(at_once=2, reserved=2), []

    def join(client):
        workers.append(Worker(slots, client))
        return workers[-1]

    yield join
    for worker in workers:
        worker.end.set()
    for worker in workers:
        worker.finish()


def test_one_client_whose_work_never_ends_leaves_turns_to_the_others(line):
    greedy = [line("a") for _ in range(8)]
    wait_until(lambda: sum(worker.has_turn.is_set() for worker in greedy) == 2, 60)
    assert sum(worker.waits() for worker in greedy) == 6
    second = line("b")
    assert second.begins()
    assert line("b").waits()  # its own second one is not worth a turn that is kept for others
    assert line("c").begins()
    assert line("d").waits()  # four in all


def test_who_has_none_comes_first_then_who_has_waited_longest(line):
    first, second = line("a"), line("a")
    assert first.begins()
    assert second.begins()
    more = line("a")
    assert more.waits()
    others = [line("b"), line("c")]
    assert all(other.begins() for other in others)
    late = line("d")
    assert late.waits()
    first.finish()
    assert late.begins()
    assert more.waits()
    for worker in (*others, late):
        worker.finish()
    assert more.begins()
    assert line("a").waits()


def test_a_client_alone_has_all_but_those_that_are_kept(line):
    assert [worker.begins() for worker in (line("a"), line("a"))] == [True, True]
    assert line("a").waits()


def test_who_gives_up_waiting_or_fails_leaves_nothing_behind():
    slots = FairSlots(at_once=1)

    def give_up():
        raise TimeoutError

    with slots.taken("a", lambda: None), pytest.raises(TimeoutError), slots.taken("b", give_up):
        pytest.fail("it had a turn")
    with pytest.raises(ValueError, match="work"), slots.taken("a", give_up):
        raise ValueError("work")
    with slots.taken("b", give_up):
        pass
