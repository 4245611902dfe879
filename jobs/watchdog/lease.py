"""`Lease`: makes one of several watchdogs the active one, and stops it from acting once it is replaced.

The lease is a row in the database. Its holder renews it every 2 s, and it ends 9 s after the last renewal by the
database's clock: so a successor replaces a holder that is frozen or whose host is lost. The holder's connection also
has an advisory lock of the lease's term: if the process is killed, the lock is free at once, and nobody waits.

The former holder may wake up in the middle of a task. Before each call to Prefect and before each commit it checks
that it still holds the lease (`fence`); its connections, and with them its locks on rows, are ended by the successor.
"""

import functools
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from uuid import UUID, uuid4

import httpx
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError

from jobs.storage.keepalives import keep_alive
from jobs.storage.schema import keep_current
from jobs.storage.watchdog_lease import TERM_LOCK
from jobs.webhooks.outbox import CHANNEL

logger = logging.getLogger(__name__)

LEASE_SECONDS = 9.0
RENEW_SECONDS = 2.0
STANDBY_SECONDS = 2.0  # between attempts to take the lease or to reach the database
STUCK_SECONDS = 300.0  # a task that does nothing for longer hangs: the lease is not renewed any more
APPLICATION = "tuneyard-watchdog-"  # with the holder's id, the name of its connections in PostgreSQL

_LIFE = f"clock_timestamp() + interval '{LEASE_SECONDS} seconds'"
_LOOK = text(
    "SELECT holder, term, expires_at < clock_timestamp() AS has_expired, "
    "EXTRACT(EPOCH FROM clock_timestamp() - looked_at) AS gap FROM watchdog_lease"
)
_IS_TERM_LOCKED = text(
    "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database ON database = pg_database.oid WHERE locktype = 'advisory' "
    "AND classid = :key AND objid = CAST(:term AS oid) AND objsubid = 2 AND granted AND datname = current_database())"
)
_LOCK_TERM = text("SELECT pg_try_advisory_lock(:key, :term)")
_UNLOCK_TERM = text("SELECT pg_advisory_unlock(:key, :term)")
# Single statements that the server commits by itself: a process that is frozen before a commit would lock the row.
_PUT = text(
    "INSERT INTO watchdog_lease (name, holder, host, pid, term, looked_at, expires_at) "  # noqa: S608 - constants
    f"VALUES ('watchdog', :holder, :host, :pid, :term, clock_timestamp(), {_LIFE}) ON CONFLICT (name) DO UPDATE SET "
    "holder = excluded.holder, host = excluded.host, pid = excluded.pid, term = excluded.term, "
    "looked_at = excluded.looked_at, expires_at = excluded.expires_at WHERE watchdog_lease.term = excluded.term - 1"
)
_RENEW = text(
    f"UPDATE watchdog_lease SET expires_at = {_LIFE}, "  # noqa: S608 - constants
    "looked_at = clock_timestamp() - make_interval(secs => :idle) WHERE holder = :holder AND term = :term"
)
_IS_MINE = text("SELECT 1 FROM watchdog_lease WHERE holder = :holder AND term = :term")
_END_CONNECTIONS = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name")


class LeaseLost(Exception):
    """Another watchdog is or may be active: this one must not act any more."""


@dataclass(frozen=True)
class Turn:
    """The time during which this process is the active watchdog."""

    connection: Connection  # with LISTEN and the term's lock
    gap_seconds: float  # since the last holder has finished a task; infinite if nobody could measure since


class Lease:
    """This process's view of the lease."""

    def __init__(self, database_url: str) -> None:
        self.holder = uuid4()
        named = {"application_name": f"{APPLICATION}{self.holder}"}
        make = functools.partial(create_engine, database_url, connect_args=named, pool_pre_ping=True)
        self._engine = keep_alive(keep_current(make(isolation_level="AUTOCOMMIT")))
        self.engine = keep_alive(keep_current(make(max_overflow=15)))  # for the tasks
        self._fence_commits(self.engine)
        self._term = 0
        self._owner = threading.get_ident()  # the thread of the tasks
        self._renewed_at = -inf
        self._looked_at = -inf

    def check(self) -> None:
        """Check the lease before an action, which counts as progress. Raises LeaseLost if the lease may have ended."""
        if _now() - self._renewed_at > LEASE_SECONDS:
            raise LeaseLost("the lease was not renewed in time")
        if threading.get_ident() == self._owner:
            self.note_progress()

    def note_progress(self) -> None:
        """Note that the tasks make progress."""
        self._looked_at = _now()

    def fence(self, client: httpx.Client) -> httpx.Client:
        """Have the client check the lease before each request; returns the client."""
        client.event_hooks["request"].append(lambda _: self.check())
        return client

    def _fence_commits(self, engine: Engine) -> None:
        @event.listens_for(engine, "commit")
        def check(connection: Connection) -> None:
            self.check()
            if connection.execute(_IS_MINE, self._mine).first() is None:
                self._renewed_at = -inf
                raise LeaseLost("another watchdog holds the lease")

    @property
    def _mine(self) -> dict[str, UUID | int]:
        return {"holder": self.holder, "term": self._term}

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """Block until this process holds the lease, and renew it inside the block. Raises SQLAlchemyError."""
        with self._engine.connect() as connection:
            stop = threading.Event()
            self._owner = threading.get_ident()
            try:
                connection.execute(text(f"LISTEN {CHANNEL}"))
                while (gap := self._take(connection)) is None:
                    time.sleep(STANDBY_SECONDS)
                threading.Thread(target=self._renew, args=[stop], name="lease", daemon=True).start()
                yield Turn(connection, gap)
            finally:
                stop.set()
                self._renewed_at = -inf
                connection.invalidate()  # neither lock nor LISTEN may go back into the pool

    def _take(self, connection: Connection) -> float | None:
        """Take the lease if its holder is gone; returns the `gap_seconds` of `Turn`, None if it is at work."""
        asked_at = _now()
        found = connection.execute(_LOOK).first()
        if found is not None and not found.has_expired and self._is_locked(connection, found.term):
            return None
        lock = {"key": TERM_LOCK, "term": 1 if found is None else found.term + 1}
        if not connection.execute(_LOCK_TERM, lock).scalar():
            return None
        me = {"holder": self.holder, "host": socket.gethostname(), "pid": os.getpid(), "term": lock["term"]}
        if connection.execute(_PUT, me).rowcount == 0:
            connection.execute(_UNLOCK_TERM, lock)
            return None
        if found is not None and found.holder != self.holder:
            self._end_connections(connection, found.holder)
        was_alone = found is not None and (found.holder, found.term) == (self.holder, self._term)
        self._term, self._renewed_at = lock["term"], asked_at
        self.note_progress()
        return inf if was_alone or found is None else float(found.gap)

    def _is_locked(self, connection: Connection, term: int) -> bool:
        """Whether the holder of this term has its connection."""
        return bool(connection.execute(_IS_TERM_LOCKED, {"key": TERM_LOCK, "term": term}).scalar())

    def _end_connections(self, connection: Connection, former: UUID) -> None:
        """End the former holder's connections, whose transactions may have locked rows."""
        try:
            connection.execute(_END_CONNECTIONS, {"name": f"{APPLICATION}{former}"})
        except SQLAlchemyError as error:
            logger.warning("The former watchdog's connections could not be ended (%s)", type(error).__name__)

    def _renew(self, stop: threading.Event) -> None:
        while not stop.wait(RENEW_SECONDS):
            idle = _now() - self._looked_at
            if idle > STUCK_SECONDS:
                logger.error("A task has done nothing for %.0f s: the lease is given up", idle)
                return
            asked_at = _now()
            try:
                with self._engine.connect() as connection:
                    renewed = connection.execute(_RENEW, {**self._mine, "idle": idle}).rowcount
            except SQLAlchemyError as error:
                logger.warning("The lease could not be renewed (%s)", type(error).__name__)
                continue
            if stop.is_set():
                return
            if not renewed:
                self._renewed_at = -inf
                logger.warning("Another watchdog has taken over")
                return
            self._renewed_at = asked_at


def _clock() -> Callable[[], float]:
    """A clock that also runs while the machine is asleep, where there is one."""
    kind = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic if kind is None else functools.partial(time.clock_gettime, kind)


_now = _clock()
