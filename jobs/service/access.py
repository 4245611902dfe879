"""Start the stack on first use and cache the process's `JobService`."""

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

CHECK_SECONDS = 10.0  # how often a use checks that the stack still runs, and restarts it if not


class StackAccess:
    """Create this process's `JobService` on first use, while other callers wait. A later call retries a failure."""

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
        """Return the service; start the stack if it is not running.

        Raises:
            StackError: the stack can't be started. Callers that waited for this attempt get the same error.
        """
        called_at = time.monotonic()
        with self._lock:
            if self._failure and self._failure[0] > called_at:
                raise type(self._failure[1])(str(self._failure[1]))
            try:
                return self._open()
            except StackError as error:
                self._failure = (time.monotonic(), error)
                raise

    def _open(self) -> JobService:
        """`open`, for a caller that holds the lock."""
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
        """Close the connections. The stack keeps running, and `open` may be called again."""
        with self._lock:
            service, self._service = self._service, None
        if service is not None:
            service.close()
            service.engine.dispose()

    @staticmethod
    def _check_schema(service: JobService) -> None:
        """Raises SchemaMismatch. An unreachable database is reported by the calls that need it."""
        try:
            with watch_database(str(service.settings.database_url)):
                ensure_current(service.engine, READ_SECONDS)
        except SchemaMismatch:
            raise
        except StackError as error:
            logger.debug("Could not check the schema: %s", error)

    def _check_home(self, settings: Settings) -> None:
        """Check that the state folder is still the same one: an empty new one would lack the jobs and keys.

        Raises:
            StackError: the folder was moved or replaced.
        """
        path, identity = self._home
        if path == settings.home and identity is not None and _identify(path) != identity:
            raise StackError(
                f"the state folder {path} was moved or replaced while this process uses it; put it back, or restart "
                "this process to use a new one"
            )


def _identify(folder: Path) -> tuple[int, int] | None:
    """A folder's device and inode; None if it does not exist."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
