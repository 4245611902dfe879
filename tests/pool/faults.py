"""Every kind of fault, and how each is done to a pool. Those that last are ended by a thread of their own."""

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import httpx

from tests.chaos.aim import Fault
from tests.chaos.pacing import wait_for_target
from tests.chaos.watcher import Sight, Watcher
from tests.pool.gate import Way
from tests.pool.hosts import freeze, thaw
from tests.pool.observer import Observer
from tests.pool.pool import WATCHDOGS, Machine, Pool

T = TypeVar("T")

TARGET_SECONDS = 90.0  # how long to wait for something to hit
POLL_SECONDS = 0.2
LONG_SECONDS = 45.0  # longer than a job may be silent
SHORT_SECONDS = 8.0
AWAY_SECONDS = 20.0  # of the store
BOOT_SECONDS = 3.0  # until a new machine stands in for one that is lost
SETTLE_SECONDS = 8.0  # for processes that were given up meanwhile to find that out
TAKEOVER_SECONDS = 60.0  # to wait for another watchdog
NEVER = datetime.min.replace(tzinfo=UTC)
MOST_LOSSES = 2  # a job may lose so many attempts without failing
ACTIVE = re.compile(r"^(\S+ \S+) INFO .*: Active, with the tasks", re.MULTILINE)


class Takeover(NamedTuple):
    """How long it took until another watchdog was active."""

    kind: str
    seconds: float


class Faults:
    """Does faults; `done` has those that have begun, `takeovers` how the watchdogs bore theirs."""

    def __init__(self, pool: Pool, observer: Observer, watcher: Watcher, rng: random.Random, deadline: float) -> None:
        self._pool = pool
        self._observer = observer
        self._watcher = watcher
        self._rng = rng
        self._deadline = deadline
        self._api = httpx.Client(base_url=pool.url, timeout=5)
        self._threads: list[threading.Thread] = []
        self._ending = threading.Event()  # lasting faults end at once
        self.done: list[Fault] = []
        self.takeovers: list[Takeover] = []
        self.errors: list[str] = []

    def do(self, kind: str) -> Fault:
        """Begin one. Raises NoTarget."""
        KINDS[kind](self, kind)
        return self.done[-1]

    def close(self) -> None:
        """Wait until all have ended."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._api.close()

    # -- hosts with a worker

    def lose_host(self, kind: str) -> None:
        """A host at work is gone with its disk, and a fresh one takes its place."""
        machine = self._take(lambda: self._find_working(is_training=True))
        self._note(kind, machine)
        self._pool.lose(machine)
        self._later(kind, BOOT_SECONDS, lambda: self._pool.boot(machine.name))

    def drain_host(self, kind: str) -> None:
        """A host's worker is told to stop; when it has, the host is gone with its disk."""
        machine = self._take(lambda: self._find_working(is_training=True))
        self._note(kind, machine)

        def drain() -> None:
            self._pool.drain(machine)
            self._pause(BOOT_SECONDS)
            self._pool.boot(machine.name)

        self._later(kind, 0, drain)

    def lose_host_in_pending(self, kind: str) -> None:
        """A host is gone before the process of the job it has taken has told Prefect that it runs."""
        machine = self._take(lambda: self._find_working(is_pending=True))
        self._note(kind, machine)
        self._pool.lose(machine)
        self._later(kind, BOOT_SECONDS, lambda: self._pool.boot(machine.name))

    def freeze_host(self, kind: str) -> None:
        """A host stands still for longer than a job may be silent, and goes on."""
        machine = self._take(lambda: self._find_working(is_training=True))
        self._note(kind, machine)
        freeze(machine.host)
        self._later(kind, LONG_SECONDS, lambda: self._give_back(machine, lambda: thaw(machine.host)))

    def cut_host(self, kind: str) -> None:
        """A host is off the network for a while, and goes on working."""
        machine = self._take(lambda: self._find_working(is_training=True))
        self._note(kind, machine)
        machine.host.cut()
        seconds = SHORT_SECONDS if kind.endswith("briefly") else LONG_SECONDS
        self._later(kind, seconds, lambda: self._give_back(machine, machine.host.heal))

    def lack_model(self, kind: str) -> None:
        """A host is replaced by one whose disk lacks the model."""
        machine = self._take(lambda: self._find_working(is_training=True))
        self._note(kind, machine)
        self._pool.lose(machine)
        self._later(kind, BOOT_SECONDS, lambda: self._pool.boot(machine.name, has_model=False))

    # -- watchdogs

    def lose_watchdog(self, kind: str) -> None:
        """The host of the active watchdog is lost, frozen or cut off."""
        machine = self._wait(self._find_active)
        machine.is_away = True
        at = datetime.now(UTC)
        self._note(kind, machine)
        if kind.endswith("killed"):
            self._pool.lose(machine)
            seconds, end = 0.0, lambda: self._pool.boot(machine.name)
        elif kind.endswith("frozen"):
            freeze(machine.host)
            seconds, end = LONG_SECONDS, lambda: self._give_back(machine, lambda: thaw(machine.host))
        else:
            machine.host.cut()
            seconds, end = LONG_SECONDS, lambda: self._give_back(machine, machine.host.heal)

        def wait_and_end() -> None:
            self.takeovers.append(Takeover(kind, self._measure_takeover(machine, at)))
            self._pause(max(0.0, seconds - (datetime.now(UTC) - at).total_seconds()))
            end()

        self._later(kind, 0, wait_and_end)

    def _find_active(self) -> Machine | None:
        machines = [self._pool.machines[name] for name in WATCHDOGS]
        if any(machine.is_away for machine in machines):
            return None
        turns = {machine.name: _read_last_turn(self._pool, machine) for machine in machines}
        return max(machines, key=lambda machine: turns[machine.name] or NEVER)

    def _measure_takeover(self, lost: Machine, at: datetime) -> float:
        """Seconds until another watchdog was active, at most a minute."""
        (other,) = (self._pool.machines[name] for name in WATCHDOGS if name != lost.name)
        while (datetime.now(UTC) - at).total_seconds() < TAKEOVER_SECONDS:
            began = _read_last_turn(self._pool, other)
            if began is not None and began >= at:
                return (began - at).total_seconds()
            time.sleep(POLL_SECONDS)
        return TAKEOVER_SECONDS

    # -- the store

    def disturb_store(self, kind: str) -> None:
        """The store can't be reached, does not answer or is full for a while."""
        gate = self._pool.servers.gate
        self._wait(lambda: gate.way is Way.OPEN or None)
        self._note(kind, None)
        gate.way = {"store away": Way.CUT, "store silent": Way.SILENT, "store full": Way.FULL}[kind]

        def open_gate() -> None:
            gate.way = Way.OPEN

        self._later(kind, AWAY_SECONDS, open_gate)

    # -- targets

    def _find_working(self, is_training: bool = False, is_pending: bool = False) -> Machine | None:
        """A host with a job that may lose another attempt, if another host is there.

        One that is training has a checkpoint in the store.
        """
        there = [machine for machine in self._pool.workers if not machine.is_away]
        if len(there) < 2:
            return None
        found = []
        for machine in there:
            jobs = self._observer.jobs.get(machine.name, set())
            if not jobs or any(self._count_losses(job_id) >= MOST_LOSSES for job_id in jobs):
                continue
            sights = [self._watcher.last(job_id) for job_id in jobs]
            trains = any(sight and sight.phase == "training" for sight in sights) and any(map(self._is_stored, jobs))
            pends = any(self._observer.states.get(job_id) == "PENDING" for job_id in jobs)
            if (not is_training or trains) and (not is_pending or pends):
                found.append(machine)
        return self._rng.choice(found) if found else None

    def _is_stored(self, job_id: str) -> bool:
        return bool(self._observer.stored.get(job_id))

    def _take(self, find: Callable[[], Machine | None]) -> Machine:
        machine = self._wait(find)
        machine.is_away = True
        return machine

    def _give_back(self, machine: Machine, end: Callable[[], None]) -> None:
        end()
        self._pause(SETTLE_SECONDS)
        machine.is_away = False

    def _count_losses(self, job_id: str) -> int:
        return sum(job_id in fault.hit for fault in self.done if fault.kind in COSTLY)

    def _note(self, kind: str, machine: Machine | None) -> None:
        """Put the fault down, the moment before it is done."""
        if machine is not None and machine.name not in WATCHDOGS:
            jobs = self._observer.jobs.get(machine.name, set())
        else:
            jobs = set().union(*self._observer.jobs.values()) if self._observer.jobs else set()
        hit = {job_id: self._attempt_of(job_id) for job_id in sorted(jobs)}
        self.done.append(Fault(kind, time.monotonic(), machine.name if machine else "the store", hit))

    def _attempt_of(self, job_id: str) -> int:
        try:
            answer = self._api.get(f"/train/{job_id}").raise_for_status()
            return Sight.of(time.monotonic(), answer.json()).attempt or 0
        except httpx.HTTPError:
            sight = self._watcher.last(job_id)
            return (sight.attempt or 0) if sight else 0

    # -- time

    def _wait(self, find: Callable[[], T | None]) -> T:
        return wait_for_target(find, TARGET_SECONDS, self._deadline)

    def _pause(self, seconds: float) -> None:
        self._ending.wait(seconds)

    def _later(self, kind: str, seconds: float, act: Callable[[], object]) -> None:
        def run() -> None:
            self._pause(seconds)
            with self._noting_errors(kind):
                act()

        self._threads.append(threading.Thread(target=run, name=kind))
        self._threads[-1].start()

    @contextmanager
    def _noting_errors(self, kind: str) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, TimeoutError) as error:
            self.errors.append(f"{kind}: {error!r}")
            print(f"BROKEN {self.errors[-1]}", flush=True)


def _read_last_turn(pool: Pool, machine: Machine) -> datetime | None:
    """When the watchdog of this machine was last made the active one, as its log has it."""
    turns = ACTIVE.findall((pool.folder / "logs" / f"{machine.name}.log").read_text(encoding="utf-8"))
    return datetime.strptime(turns[-1], "%Y-%m-%d %H:%M:%S,%f").astimezone() if turns else None


KINDS: dict[str, Callable[[Faults, str], None]] = {
    "host lost": Faults.lose_host,
    "host drained": Faults.drain_host,
    "host frozen": Faults.freeze_host,
    "network cut": Faults.cut_host,
    "host lost in PENDING": Faults.lose_host_in_pending,
    "watchdog killed": Faults.lose_watchdog,
    "watchdog frozen": Faults.lose_watchdog,
    "watchdog cut off": Faults.lose_watchdog,
    "store away": Faults.disturb_store,
    "store silent": Faults.disturb_store,
    "store full": Faults.disturb_store,
    "host without model": Faults.lack_model,
    "network cut briefly": Faults.cut_host,
}
NEEDS_NETWORK = ("network cut", "network cut briefly", "watchdog cut off")
# After these a job is well again once its next attempt has begun; the costly ones count as lost attempts.
LETHAL = ("host lost", "host drained", "host frozen", "network cut", "host lost in PENDING", "host without model")
COSTLY = tuple(kind for kind in LETHAL if kind != "host drained")


def draw_kinds(count: int, chosen: list[str], can_cut: bool, rng: random.Random) -> list[str]:
    """Kinds in random order: the first ones of those chosen if there are fewer than all, else all of them in turn."""
    known = [kind for kind in chosen if can_cut or kind not in NEEDS_NETWORK]
    kinds: list[str] = []
    while len(kinds) < count:
        some = known[: count - len(kinds)]
        kinds += rng.sample(some, len(some))
    return kinds
