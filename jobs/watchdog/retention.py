"""Periodic task: deletes events and deliveries of jobs that ended long ago."""

import logging

from sqlalchemy import Engine

from jobs.storage.events import forget_old_events
from jobs.webhooks.outbox import forget_old_deliveries

logger = logging.getLogger(__name__)


class Retention:
    """Deletes those that are older than `TUNEYARD_KEEP_EVENTS_DAYS`, of some hundred jobs at a time; reports stay."""

    def __init__(self, engine: Engine, days: int) -> None:
        self._engine = engine
        self._days = days

    def look(self) -> None:
        """Run the task once. Raises SQLAlchemyError."""
        forget_old_deliveries(self._engine, self._days)
        if forgotten := forget_old_events(self._engine, self._days):
            logger.info("Removed the events of %s jobs that ended over %s days ago", forgotten, self._days)
