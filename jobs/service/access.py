"""Starts the stack on first use and caches the process's `JobService`."""

import logging
import threading
import time
from pathlib import Path
from typing import Self

from jobs.errors import SchemaMismatch
from jobs.network.deadlines import READ_SECONDS
from jobs.service.job_service import JobService
from jobs.settings import Settings
from jobs.stack.local import ensure_up
from jobs.storage.connections import watch_database
from jobs.storage.schema import ensure_current
from sft.errors import StackError

logger = logging.getLogger(__name__)

CHECK_SECONDS = 10.0  # a stack that was stopped meanwhile is started again by the first use after this


class StackAccess:
    """The `JobService` of this process: the first call makes it while others wait; the next one retries a failure."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings
        self._service: JobService | None = None
        self._checked_at = 0.0
        self._failure: tuple[float, StackError] | None = None
        self._home: tuple[Path | None, tuple[int, int] | None] = (None, None)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> JobService:
        """The service, with the stack it needs.

        Raises:
            StackError: that can't be started. Those who waited meanwhile get it too, and do not try again.
        """
        asked_at = time.monotonic()
        with self._lock:
            if self._failure and self._failure[0] > asked_at:
                raise type(self._failure[1])(str(self._failure[1]))
            try:
                return self._open()
            except StackError as error:
                self._failure = (time.monotonic(), error)
                raise

    def _open(self) -> JobService:
        """Holds the lock."""
        if self._service is None or time.monotonic() - self._checked_at > CHECK_SECONDS:
            wanted = self._settings or Settings()
            self._check_home(wanted)
            settings = ensure_up(wanted)
            self._home = (settings.home, _identify(settings.home))
            if self._service is None or self._service.settings != settings:
                self._service = JobService(settings)
            self._check_schema(self._service)
            self._checked_at = time.monotonic()
        return self._service

    def close(self) -> None:
        """End the connections; the stack stays up. Opening again makes new ones."""
        with self._lock:
            service, self._service = self._service, None
        if service is not None:
            service.close()
            service.engine.dispose()

    @staticmethod
    def _check_schema(service: JobService) -> None:
        """Raises SchemaMismatch. A database that is away is left to whoever needs it to say."""
        try:
            with watch_database(str(service.settings.database_url)):
                ensure_current(service.engine, READ_SECONDS)
        except SchemaMismatch:
            raise
        except StackError as error:
            logger.debug("The schema could not be looked at: %s", error)

    def _check_home(self, settings: Settings) -> None:
        """A state folder that was there and was moved away is not made anew: its jobs and keys are elsewhere.

        Raises:
            StackError: naming the folder.
        """
        path, identity = self._home
        if path == settings.home and identity is not None and _identify(path) != identity:
            raise StackError(
                f"the state folder {path} was moved or replaced while this process uses it; put it back, or restart "
                "this process to begin with a new one"
            )


def _identify(folder: Path) -> tuple[int, int] | None:
    """What a folder is known by whatever its name; None where there is none."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
