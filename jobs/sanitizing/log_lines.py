"""Keeps logs readable: one line per record, without passwords, and no warning thousands of times.

Names in a record may contain any characters; they can't add a second line or move the cursor.
"""

import logging
import re
import textwrap
import time
import traceback
from typing import Any

from tuneyard_wire.one_line import escape

PERIOD_SECONDS = 60.0
# Our loggers, and those of Prefect that log the outcome of runs.
LOGGERS = (
    "api",
    "app",
    "cli",
    "flows",
    "jobs",
    "sft",
    "tasks",
    "prefect.flow_runs",
    "prefect.task_runs",
    "prefect.engine",
)

HIDDEN = "***"

# Matched from `://`, as a search for the scheme's beginning would start at every letter of a long text.
_PASSWORD = re.compile(r"((?<=[A-Za-z0-9+.-])://[^\s/?#:@]*:)[^\s/?#]*@")
_TOKEN = re.compile(r"(https?://)[^\s/?#:@]+@")  # git's form: a token as the user name, without a password


class OneLineRecord(logging.LogRecord):
    """A record whose message has no line breaks; a traceback's lines are indented."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and isinstance(self.exc_info, tuple) and self.exc_info[0] is not None:
            lines = "".join(traceback.format_exception(*self.exc_info)).splitlines()
            self.exc_text = textwrap.indent("\n".join(escape(hide_passwords(line)) for line in lines), "  ")

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        """The message with its arguments, control characters escaped and passwords in URLs hidden."""
        return escape(hide_passwords(super().getMessage()))


def keep_lines_whole() -> None:
    """Make records of LOGGERS `OneLineRecord`s in this process, for all handlers."""
    logging.setLogRecordFactory(_make_record)


def _make_record(name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
    is_ours = any(name == logger or name.startswith(f"{logger}.") for logger in LOGGERS)
    return (OneLineRecord if is_ours else logging.LogRecord)(name, *args, **kwargs)


def hide_passwords(text: str) -> str:
    """Replace the password or token in each URL of a text by `***`."""
    return _TOKEN.sub(rf"\g<1>{HIDDEN}@", _PASSWORD.sub(rf"\g<1>{HIDDEN}@", text))


class SeldomLog:
    """Writes the first warning of a kind at once, and counts those of the following minute."""

    def __init__(self, logger: logging.Logger, period_seconds: float = PERIOD_SECONDS) -> None:
        self._logger = logger
        self._period_seconds = period_seconds
        self._written_at: dict[str, float] = {}
        self._kept_back: dict[str, int] = {}

    def warn(self, text: str) -> None:
        """Write a warning unless one with the same text apart from numbers was written lately."""
        kind = "".join(letter for letter in text if not letter.isdigit())
        now = time.monotonic()
        if now - self._written_at.get(kind, float("-inf")) < self._period_seconds:
            self._kept_back[kind] = self._kept_back.get(kind, 0) + 1
            return
        self._written_at[kind] = now
        more = self._kept_back.pop(kind, 0)
        self._logger.warning("%s%s", text, f" (and {more} more of the kind before)" if more else "")
