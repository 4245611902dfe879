"""The machine's clock set back, as a duty of the watchdog: what was to be done at a time comes as soon as before.

Heartbeats and time limits count on the monotonic clock or by change, and need nothing of this.
"""

import logging
import time
from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import Engine, update

from jobs.storage.tables import WebhookDelivery

logger = logging.getLogger(__name__)

LEAST_SECONDS = 5.0  # less is a clock being kept right


class ClockSteps:
    """Notices that the clock was set back since the last look.

    Args:
        wall: the clock that may be set.
        steady: one that may not, and counts on while the machine works.
    """

    def __init__(
        self, engine: Engine, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._engine = engine
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()

    def look(self) -> None:
        """Bring deliveries forward that would wait for the clock to catch up. Raises SQLAlchemyError."""
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
