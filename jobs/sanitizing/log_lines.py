"""A log record is one line, whatever the names in it contain: nobody can write a second one, or move the cursor."""

import logging
import re
import textwrap
import traceback
from typing import Any

from jobs.sanitizing.redaction import hide_passwords

# Ours, and those through which Prefect tells how a run of ours came out.
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

# All but the tab: C0 and C1, line and paragraph separators, what turns the direction of writing, what is not seen.
_CONTROL = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    r"\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


class OneLineRecord(logging.LogRecord):
    """A record whose message has no line breaks; the lines of a traceback are indented."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and isinstance(self.exc_info, tuple) and self.exc_info[0] is not None:
            lines = "".join(traceback.format_exception(*self.exc_info)).splitlines()
            self.exc_text = textwrap.indent("\n".join(escape(hide_passwords(line)) for line in lines), "  ")

    def getMessage(self) -> str:  # noqa: N802 - logging's name
        """The message with its arguments, control characters escaped and passwords in URLs hidden."""
        return escape(hide_passwords(super().getMessage()))


def keep_lines_whole() -> None:
    """From here on records of LOGGERS are `OneLineRecord`s, in this process and whatever handles them."""
    logging.setLogRecordFactory(_make_record)


def escape(text: str) -> str:
    r"""The text on one line: control characters are written as in Python (`\n`)."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _make_record(name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
    is_ours = any(name == logger or name.startswith(f"{logger}.") for logger in LOGGERS)
    return (OneLineRecord if is_ours else logging.LogRecord)(name, *args, **kwargs)
