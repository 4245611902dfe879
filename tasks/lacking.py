"""Releases a job whose model this host lacks to another host: in a pool, not every host has every model."""

import logging

import httpx
from sqlalchemy import func, select

from jobs.engine.credentials import open_client
from jobs.engine.pool_workers import PoolWorkers
from jobs.lifecycle.attempts import HOST, Attempt
from jobs.settings import Settings
from jobs.storage.events import write_event
from jobs.storage.tables import JobEvent
from sft.errors import ModelNotFound
from tasks.causes import Cause
from tuneyard_wire.loopback import is_on_this_machine

logger = logging.getLogger(__name__)

LACKING = "lacking"
TRIES_A_WORKER = 2  # for a job that has never begun to train, whose model may be nowhere
TRIES_OF_BEGUN = 60  # for one that has, elsewhere: a quarter of an hour, for the host that has its model
HOLD_SECONDS = 15.0  # during which this host's worker takes no other run, so that another worker takes the job


def leave_to_others(settings: Settings, attempt: Attempt, cause: Cause) -> bool:
    """Whether another host may have what this one lacks; recorded as an event, since such tries are limited."""
    if cause.code != ModelNotFound.code:
        return False
    with attempt.writing() as connection:
        mine = (JobEvent.job_id == attempt.job_id) & JobEvent.event.in_([LACKING, "begin"])
        found = connection.execute(select(JobEvent.event, func.count()).where(mine).group_by(JobEvent.event))
        events: dict[str, int] = {row[0]: row[1] for row in found}
    others = count_other_workers(settings)
    limit = TRIES_OF_BEGUN if "begin" in events and others else TRIES_A_WORKER * (others + 1) if others else 0
    if events.get(LACKING, 0) + 1 >= limit:
        return False
    with attempt.writing() as connection:
        write_event(connection, attempt.job_id, LACKING, {"host": HOST, "reason": cause.message})
    logger.warning("%s lacks the job's model, and leaves the job to another host: %s", HOST, cause.message)
    return True


def count_other_workers(settings: Settings) -> int:
    """Number of the pool's other online workers; 0 if all workers are on this machine."""
    if settings.prefect_api_url is None or is_on_this_machine(settings.prefect_api_url):
        return 0
    try:
        with open_client(settings, timeout_seconds=10) as prefect:
            return max(0, PoolWorkers(prefect, settings.work_pool).count_online() - 1)
    except httpx.HTTPError as error:
        logger.warning("Prefect does not say which workers are online (%s)", type(error).__name__)
        return 0
