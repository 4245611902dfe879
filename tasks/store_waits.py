"""Waits for a shared store that is down, in the background or until it is back."""

import logging
import threading
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError
from tenacity import retry_if_exception_type

from jobs.errors import StoreRefused
from jobs.lifecycle.attempts import Superseded
from jobs.retrying import patient
from jobs.store_lists import Damaged
from sft.errors import StackError

logger = logging.getLogger(__name__)

PATIENCE_SECONDS = 600.0  # for a store that is down when an attempt has to fetch something


def send_in_background(what: str, send: Callable[[], object]) -> None:
    """Send something to the store from a thread, retrying while the store is down until the process ends."""

    def run() -> None:
        try:
            patient(retry_if_exception_type((StackError, SQLAlchemyError)), tell=tell_of_wait)(send)
        except (OSError, StoreRefused, Damaged) as error:
            logger.warning("%s did not get into the store: %s", what, error)
        except Superseded:  # the heartbeat ends the process
            return

    threading.Thread(target=run, name="store", daemon=True).start()


def tell_of_wait(why: str) -> None:
    """Log that the store is down."""
    logger.warning("The store is away; waiting for it (%s)", why)
