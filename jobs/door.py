"""The one way in: brings the stack up on first use and hands out the process's `JobService`."""

import threading

from jobs.service import JobService
from jobs.settings import Settings
from jobs.stack import ensure_up


class Door:
    """Opens once, whoever knocks first; others wait. A failed opening is tried again by the next one."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings
        self._service: JobService | None = None
        self._lock = threading.Lock()

    def open(self) -> JobService:
        """The service, with the stack it needs. Raises StackError when that can't be started."""
        with self._lock:
            if self._service is None:
                self._service = JobService(ensure_up(self._settings or Settings()))
            return self._service
