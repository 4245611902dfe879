"""`python -m jobs.watchdog`: runs the periodic tasks that must not depend on a job's process or the API.

It is a part of the local stack; with servers of your own, run it on a machine that reaches them. Of several watchdogs
one is active, the holder of a lease in the database (`jobs.watchdog.lease`); the others stand by. It may be killed,
frozen or lost at any moment: within 15 s another one continues its tasks, with what it has measured so far.
"""

import functools
import logging
import os
import select
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from sqlalchemy import Connection, text
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
from jobs.watchdog.cancellations import Cancellations
from jobs.watchdog.clock_steps import ClockSteps
from jobs.watchdog.clocks import Clocks
from jobs.watchdog.deliveries import Deliverer
from jobs.watchdog.idle_workers import IdleWorkers
from jobs.watchdog.lease import STANDBY_SECONDS, Lease, LeaseLost
from jobs.watchdog.manual_changes import ManualChanges
from jobs.watchdog.owners import OwnerTags
from jobs.watchdog.recovery import Recovery
from jobs.watchdog.retention import Retention
from sft.errors import StackError

logger = logging.getLogger(__name__)

LOCAL_FLAG = "--local"  # the workers run on this machine, so their processes can be seen and killed
SCHEMA_SECONDS = 10.0


@dataclass
class PeriodicTask:
    """A task that runs every few seconds, and with `on_wake` also on a notification.

    Errors of the database and the network are logged, and the task runs again the next time.
    """

    name: str
    every_seconds: float
    run: Callable[[], None]
    on_wake: bool = False
    due_at: float = 0.0


def watch(lease: Lease, tasks: list[PeriodicTask], clocks: Clocks) -> None:
    """Run the tasks without end, while this process holds the lease."""
    while True:
        try:
            with lease.turn() as turn:
                clocks.load(turn.gap_seconds)
                logger.info("Active, with the tasks %s", ", ".join(task.name for task in tasks))
                looked_at = time.monotonic()
                for task in tasks:
                    task.due_at = 0.0
                while True:
                    _run_due(tasks, lease)
                    clocks.save()
                    _wait(turn.connection, tasks)
                    if time.monotonic() - looked_at > SCHEMA_SECONDS:
                        ensure_current(lease.engine)
                        looked_at = time.monotonic()
        except SchemaMismatch as error:
            logger.error("No task runs until this is solved: %s", error)
            time.sleep(STANDBY_SECONDS)
        except SQLAlchemyError as error:
            logger.warning("The database can't be reached (%s)", type(error).__name__)
            time.sleep(STANDBY_SECONDS)
        except LeaseLost as error:
            logger.warning("Standing by: %s", error)


def _run_due(tasks: list[PeriodicTask], lease: Lease) -> None:
    for task in tasks:
        lease.check()
        if time.monotonic() >= task.due_at:
            try:
                task.run()
            except (SQLAlchemyError, httpx.HTTPError, StackError) as error:
                logger.warning("%s: %s", task.name, _show(error))
            task.due_at = time.monotonic() + task.every_seconds
        lease.note_progress()


def _show(error: Exception) -> str:
    """Describe an error without the database's or the network's own message."""
    return str(error) if isinstance(error, StackError) else type(error).__name__


def _wait(connection: Connection, tasks: list[PeriodicTask]) -> None:
    """Wait until a task is due or a notification comes. Raises SQLAlchemyError if the connection is lost."""
    raw = connection.connection.driver_connection
    assert raw is not None  # noqa: S101 - for the type checker
    left = min(task.due_at for task in tasks) - time.monotonic()
    select.select([raw], [], [], max(0.0, left))
    connection.execute(text("SELECT 1"))  # reads notifications, and fails if the server is gone
    if raw.notifies:
        raw.notifies.clear()
        for task in tasks:
            if task.on_wake:
                task.due_at = 0.0


def _repair(settings: Settings) -> None:
    if made := repair(settings, os.environ, is_patient=False):
        logger.warning("Re-created what was deleted in Prefect: %s", ", ".join(made))


def main() -> None:
    """Run until killed. Raises StackError if addresses are missing from the environment."""
    keep_private()
    keep_lines_whole()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    bypass_proxies(os.environ)
    settings = Settings()
    if settings.database_url is None or settings.prefect_api_url is None:
        raise StackError("TUNEYARD_DATABASE_URL and PREFECT_API_URL must be set where the watchdog runs")
    lease = Lease(settings.database_url)
    engine, clocks = lease.engine, Clocks(lease.engine)
    prefect = lease.fence(open_client(settings, timeout_seconds=10))
    is_local = LOCAL_FLAG in sys.argv[1:]
    runs = PoolRuns(prefect, settings.work_pool, engine)
    deliveries = Deliverer(engine, settings, prefect)
    recovery = Recovery(
        engine, runs, settings.max_attempts, is_local, clocks.stopwatch("recovery"), settings.pod_start_seconds
    )
    cancellations = Cancellations(engine, runs, is_local, clocks.stopwatch("cancellations"))
    changes = ManualChanges(engine, runs, settings.prefect_api_url, is_local, clocks.stopwatch("manual changes"))
    tasks = [
        PeriodicTask("clock", 2.0, ClockSteps(engine).look),
        PeriodicTask("webhooks", 2.0, deliveries.send_due, on_wake=True),
        PeriodicTask("recovery", 3.0, recovery.look),
        PeriodicTask("ends of jobs", 3.0, deliveries.add_missing),
        PeriodicTask("manual changes", 3.0, changes.look),
        PeriodicTask("cancellations", 3.0, cancellations.finish),
    ]
    tasks.append(PeriodicTask("owners of jobs", 5.0, OwnerTags(engine, runs).look))
    tasks.append(PeriodicTask("retention", 300.0, Retention(engine, settings.keep_events_days).look))
    if is_local:
        tasks.append(PeriodicTask("idle workers", 10.0, IdleWorkers(runs, Supervisor(settings.home)).look))
        tasks.append(PeriodicTask("repair", 10.0, functools.partial(_repair, settings)))
    watch(lease, tasks, clocks)


if __name__ == "__main__":
    main()
