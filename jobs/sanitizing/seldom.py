"""A warning that may be due thousands of times a second, written once a minute."""

import logging
import time

PERIOD_SECONDS = 60.0


class SeldomLog:
    """Writes the first warning of a kind at once; those of the minute after are counted only."""

    def __init__(self, logger: logging.Logger, period_seconds: float = PERIOD_SECONDS) -> None:
        self._logger = logger
        self._period_seconds = period_seconds
        self._written_at: dict[str, float] = {}
        self._kept_back: dict[str, int] = {}

    def warn(self, text: str) -> None:
        """Write a warning unless one of the same text, whatever its figures, was written lately."""
        kind = "".join(letter for letter in text if not letter.isdigit())
        now = time.monotonic()
        if now - self._written_at.get(kind, float("-inf")) < self._period_seconds:
            self._kept_back[kind] = self._kept_back.get(kind, 0) + 1
            return
        self._written_at[kind] = now
        more = self._kept_back.pop(kind, 0)
        self._logger.warning("%s%s", text, f" (and {more} more of the kind before)" if more else "")
