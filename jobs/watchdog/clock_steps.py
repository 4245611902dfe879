"""Periodic task: detects that the machine's clock was set back, and reschedules pending webhooks.

Heartbeats and time limits use the monotonic clock or changes of values, and are not affected.
"""

import logging
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import Engine, update

from jobs.storage.tables import WebhookDelivery

logger = logging.getLogger(__name__)

LEAST_SECONDS = 5.0  # smaller steps are ordinary adjustments


class ClockSteps:
    """Detects that the clock was set back since the last run of the task.

    Args:
        wall: the clock that may be set.
        steady: a monotonic clock.
    """

    def __init__(
        self, engine: Engine, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()

    def look(self) -> None:
        """Bring forward deliveries that would wait for the clock to catch up. Raises SQLAlchemyError."""
        offset = self._wall() - self._steady()
        seconds = self._offset - offset
        if seconds >= LEAST_SECONDS:
            back = timedelta(seconds=seconds)
            times = {
                "next_attempt_at": WebhookDelivery.next_attempt_at - back,
                "expires_at": WebhookDelivery.expires_at - back,
            }
            with self._engine.begin() as connection:
                is_pending = WebhookDelivery.state == "pending"
                connection.execute(update(WebhookDelivery).where(is_pending).values(**times))
            logger.warning("The clock was set back by %.0f s: pending webhooks are brought forward", seconds)
        self._offset = offset
