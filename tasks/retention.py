"""State hook of the flow: each job that ends deletes old records of earlier jobs."""

import logging
from typing import Any

from prefect.client.schemas.objects import FlowRun, State

from jobs.settings import Settings
from jobs.storage.events import forget_old_events
from jobs.storage.tables import engine_for
from jobs.webhooks.outbox import forget_old_deliveries

logger = logging.getLogger(__name__)


def forget_old_jobs(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Delete events and deliveries of jobs that ended more than `TUNEYARD_KEEP_EVENTS_DAYS` ago; reports stay."""
    settings = Settings()
    if settings.database_url is None:
        return
    engine = engine_for(settings.database_url)
    forget_old_deliveries(engine, settings.keep_events_days)
    if forgotten := forget_old_events(engine, settings.keep_events_days):
        logger.info("Removed the events of %s jobs that ended over %s days ago", forgotten, settings.keep_events_days)
