"""What a connection that stays open brings: events, log lines, an archive. Bytes in, values out."""

import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sft.publication import publish_folder
from tuneyard_client.calls import Call, events_request
from tuneyard_client.errors import ChecksumMismatch, ClientError, ServiceUnreachable, UnexpectedAnswer
from tuneyard_client.models import JobEvent
from tuneyard_client.retries import LIMIT, pause_before_try

CHECKSUM_HEADER = "X-Checksum-SHA256"
END = "end"
_LINE_END = re.compile(r"\r\n|\n|\r(?!$)")  # a \r that comes last may be half of a \r\n


class EventReader:
    """The server-sent events of a job over as many connections as it takes, each taken up where the last one broke.

    Follows the event stream interpretation of the HTML standard, section 9.2.6.
    """

    def __init__(self, job_id: str, last_event_id: str | None = None) -> None:
        self.has_ended = False
        self._job_id = job_id
        self._last_event_id = last_event_id
        self._failures = 0
        self._buffer = ""
        self._fields: dict[str, list[str]] = {}

    def connect(self) -> Call[Any]:
        """The call that brings the events not seen yet. What an earlier connection left half sent is dropped."""
        self._buffer, self._fields = "", {}
        return events_request(self._job_id, self._last_event_id)

    def feed(self, text: str) -> list[JobEvent]:
        """The events that this piece of the stream completes."""
        *lines, self._buffer = _LINE_END.split(self._buffer + text)
        return [event for line in lines if (event := self._take(line)) is not None]

    def pause_after_loss(self) -> float:
        """Seconds until the next connection. Raises ServiceUnreachable when the last few brought nothing."""
        self._failures += 1
        if self._failures >= LIMIT:
            raise ServiceUnreachable(f"the events of job {self._job_id} break off; is the service running?")
        return pause_before_try(self._failures)

    def _take(self, line: str) -> JobEvent | None:
        if line:
            name, _, value = line.partition(":")
            if name:
                self._fields.setdefault(name, []).append(value.removeprefix(" "))
            return None
        fields, self._fields = self._fields, {}
        if "id" in fields:
            self._last_event_id = fields["id"][-1]
        if "data" not in fields:
            return None
        self._failures = 0
        event = fields.get("event", ["message"])[-1]
        self.has_ended = event == END
        try:
            data = json.loads("\n".join(fields["data"]))
        except ValueError as error:
            raise UnexpectedAnswer(f"the event {event} carries no JSON; is this a Tuneyard service?") from error
        return JobEvent(id=self._last_event_id, event=event, data=data)


class LineReader:
    """Text in pieces to whole lines."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> list[str]:
        """The lines that this piece completes, empty ones left out."""
        *lines, self._rest = (self._rest + text).split("\n")
        return [line for line in lines if line.strip()]

    def finish(self) -> list[str]:
        """A last line without its end."""
        return self.feed("\n")


class AdapterArchive:
    """The archive of an adapter as it comes in; unpacked only when it is whole."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._expected = headers.get(CHECKSUM_HEADER)
        self._digest = hashlib.sha256()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._digest.update(chunk)
        self._file.write(chunk)

    def unpack(self, folder: Path) -> Path:
        """Make `folder` of the archive's files: there whole or not at all.

        Raises:
            ChecksumMismatch: what came is not what was sent.
            UnexpectedAnswer: it is no archive.
        """
        if self._digest.hexdigest() != self._expected:
            raise ChecksumMismatch(
                f"the archive's SHA-256 is {self._digest.hexdigest()}, not {self._expected}; download it again"
            )
        self._file.seek(0)
        try:
            with tarfile.open(fileobj=self._file) as archive, publish_folder(folder) as temporary:
                archive.extractall(temporary, filter="data")
        except tarfile.TarError as error:
            raise UnexpectedAnswer(f"the adapter can't be unpacked: {error}") from error
        return folder


def check_free(folder: Path) -> None:
    """Raises ClientError when something is in the way."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise ClientError(f"{folder} {what}; choose another folder", code="folder_exists")
