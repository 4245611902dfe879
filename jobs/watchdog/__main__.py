"""The watchdog: duties that must be seen to whatever becomes of a job's process and of the API.

A part of the local stack; beside servers of your own run `python -m jobs.watchdog` where it may reach them. Of several
one is at work, the holder of an advisory lock in the database; the others wait to take its place. It may be killed at
any moment: each duty takes up what another left.
"""

import functools
import logging
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
from sqlalchemy import Connection, Engine, func, text
from sqlalchemy import select as sql_select
from sqlalchemy.exc import SQLAlchemyError

from jobs.engine.credentials import open_client
from jobs.engine.pool_runs import PoolRuns
from jobs.errors import SchemaMismatch
from jobs.network.proxies import bypass_proxies
from jobs.privacy import keep_private
from jobs.sanitizing.log_lines import keep_lines_whole
from jobs.settings import Settings
from jobs.stack.local import repair
from jobs.stack.process_manager import Supervisor
from jobs.storage.schema import ensure_current
from jobs.storage.tables import WATCHDOG_LOCK, engine_for
from jobs.watchdog.cancellations import Cancellations
from jobs.watchdog.clock_steps import ClockSteps
from jobs.watchdog.deliveries import Deliverer
from jobs.watchdog.hands import Hands
from jobs.watchdog.idle_workers import IdleWorkers
from jobs.watchdog.recovery import Recovery
from jobs.webhooks.outbox import CHANNEL
from sft.errors import StackError

logger = logging.getLogger(__name__)

LOCAL_FLAG = "--local"  # the workers run on this machine, so their processes can be looked after
SCHEMA_SECONDS = 10.0
STANDBY_SECONDS = 3.0  # between two tries to take over, or to reach the database again


@dataclass
class PeriodicTask:
    """Something to be done every few seconds, and with `on_wake` whenever somebody says that there is something to do.

    What it raises of the database's and the network's is logged, and it is done again the next time.
    """

    name: str
    every_seconds: float
    run: Callable[[], None]
    on_wake: bool = False
    due_at: float = 0.0


def watch(engine: Engine, duties: list[PeriodicTask]) -> None:
    """See to the duties for ever, while no other process does."""
    while True:
        try:
            with _turn(engine) as connection:
                logger.info("At work: %s", ", ".join(duty.name for duty in duties))
                looked_at = time.monotonic()
                for duty in duties:
                    duty.due_at = 0.0
                while True:
                    _run_due(duties)
                    _wait(connection, duties)
                    if time.monotonic() - looked_at > SCHEMA_SECONDS:
                        ensure_current(engine)
                        looked_at = time.monotonic()
        except SchemaMismatch as error:
            logger.error("Nothing is done until this is solved: %s", error)
            time.sleep(STANDBY_SECONDS)
        except SQLAlchemyError as error:
            logger.warning("The database can't be reached (%s)", type(error).__name__)
            time.sleep(STANDBY_SECONDS)


def _run_due(duties: list[PeriodicTask]) -> None:
    for duty in duties:
        if time.monotonic() >= duty.due_at:
            try:
                duty.run()
            except (SQLAlchemyError, httpx.HTTPError, StackError) as error:
                logger.warning("%s: %s", duty.name, _show(error))
            duty.due_at = time.monotonic() + duty.every_seconds


def _show(error: Exception) -> str:
    """What it is, without a database's or a network's own words."""
    return str(error) if isinstance(error, StackError) else type(error).__name__


@contextmanager
def _turn(engine: Engine) -> Iterator[Connection]:
    """The connection that holds the lock, as soon as nobody else does. It is lost with the connection."""
    with engine.connect() as connection:
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(text(f"LISTEN {CHANNEL}"))
        try:
            while not connection.execute(sql_select(func.pg_try_advisory_lock(WATCHDOG_LOCK))).scalar():
                time.sleep(STANDBY_SECONDS)
            yield connection
        finally:
            connection.invalidate()  # neither lock nor LISTEN goes back into the pool


def _wait(connection: Connection, duties: list[PeriodicTask]) -> None:
    """Wait until a duty is due or somebody wakes us. Raises SQLAlchemyError when the lock's connection is gone."""
    raw = connection.connection.driver_connection
    assert raw is not None  # noqa: S101 - for the type checker
    left = min(duty.due_at for duty in duties) - time.monotonic()
    select.select([raw], [], [], max(0.0, left))
    connection.execute(text("SELECT 1"))  # reads what came, and notices that the server has gone
    if raw.notifies:
        raw.notifies.clear()
        for duty in duties:
            if duty.on_wake:
                duty.due_at = 0.0


def _repair(settings: Settings) -> None:
    if made := repair(settings, os.environ, is_patient=False):
        logger.warning("Made again what was deleted in Prefect: %s", ", ".join(made))


def main() -> None:
    """Run until killed. Raises StackError when addresses are missing from the environment."""
    keep_private()
    keep_lines_whole()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    bypass_proxies(os.environ)
    settings = Settings()
    if settings.database_url is None or settings.prefect_api_url is None:
        raise StackError("TUNEYARD_DATABASE_URL and PREFECT_API_URL must be set where the watchdog runs")
    engine = engine_for(settings.database_url)
    prefect = open_client(settings, timeout_seconds=10)
    is_local = LOCAL_FLAG in sys.argv[1:]
    runs = PoolRuns(prefect, settings.work_pool, engine)
    deliveries = Deliverer(engine, settings, prefect)
    duties = [
        PeriodicTask("clock", 2.0, ClockSteps(engine).look),
        PeriodicTask("webhooks", 2.0, deliveries.send_due, on_wake=True),
        PeriodicTask("recovery", 3.0, Recovery(engine, runs, settings.max_attempts, is_local).look),
        PeriodicTask("ends of jobs", 3.0, deliveries.add_missing),
        PeriodicTask("other people's hands", 3.0, Hands(engine, runs, settings.prefect_api_url, is_local).look),
    ]
    if is_local:
        duties.append(PeriodicTask("cancellations", 3.0, Cancellations(runs).finish))
        duties.append(PeriodicTask("idle workers", 10.0, IdleWorkers(runs, Supervisor(settings.home)).look))
        duties.append(PeriodicTask("repair", 10.0, functools.partial(_repair, settings)))
    watch(engine, duties)


if __name__ == "__main__":
    main()
