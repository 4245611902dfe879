"""What a connection that stays open brings: events, log lines, an archive. Bytes in, values out."""

import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tuneyard_client.answers import check_length, check_room
from tuneyard_client.calls import Call, events_request
from tuneyard_client.errors import ChecksumMismatch, ClientError, ServiceUnreachable, UnexpectedAnswer
from tuneyard_client.folders import FULL, publish_folder
from tuneyard_client.retries import LIMIT, pause_before_try
from tuneyard_wire.records import JobEvent

HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
HEADER_BYTES = 2**20
CHECKSUM_HEADER = "X-Checksum-SHA256"
END = "end"
ID_CHARACTERS = 200  # of an event's id; the service's have at most 19
MOST_FIELD_LINES = 1000  # of one event; the service's have three
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
        self._field_lines = 0

    def connect(self) -> Call[Any]:
        """The call that brings the events not seen yet. What an earlier connection left half sent is dropped."""
        self._buffer, self._fields, self._field_lines = "", {}, 0
        return events_request(self._job_id, self._last_event_id)

    def feed(self, text: str) -> list[JobEvent]:
        """The events that this piece of the stream completes."""
        *lines, rest = _LINE_END.split(self._buffer + text)
        self._buffer = check_length(rest)
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
                self._field_lines += 1
                if self._field_lines > MOST_FIELD_LINES:
                    raise UnexpectedAnswer(
                        f"an event has more than {MOST_FIELD_LINES} lines; is this a Tuneyard service?"
                    )
            return None
        fields, self._fields, self._field_lines = self._fields, {}, 0
        if "id" in fields:
            self._last_event_id = _check_id(fields["id"][-1])
        if "data" not in fields:
            return None
        self._failures = 0
        event = fields.get("event", ["message"])[-1]
        self.has_ended = event == END
        try:
            data = json.loads("\n".join(fields["data"]))
            return JobEvent(id=self._last_event_id, event=event, data=data)
        except (ValueError, RecursionError) as error:
            raise UnexpectedAnswer(f"the event {event:.50} carries no JSON; is this a Tuneyard service?") from error


def _check_id(event_id: str) -> str:
    """An id that can be sent back in a header. Raises UnexpectedAnswer."""
    if not (event_id.isascii() and event_id.isprintable()) or len(event_id) > ID_CHARACTERS:
        raise UnexpectedAnswer(f"an event has the id {event_id[:50]!r}; is this a Tuneyard service?")
    return event_id


class LineReader:
    """Text in pieces to whole lines."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> list[str]:
        """The lines that this piece completes, empty ones left out."""
        *lines, rest = (self._rest + text).split("\n")
        self._rest = check_length(rest)
        return [line for line in lines if line.strip()]

    def finish(self) -> list[str]:
        """A last line without its end."""
        return self.feed("\n")


class AdapterArchive:
    """The archive of an adapter as it comes in; unpacked only when it is whole."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        check_room(headers.get("Content-Length"))
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
        try:
            self._file.write(chunk)
        except OSError as error:
            raise _no_room(error) from error

    def unpack(self, folder: Path) -> Path:
        """Make `folder` of the archive's files: there whole or not at all.

        Raises:
            ChecksumMismatch: what came is not what was sent.
            UnexpectedAnswer: it is not an archive.
        """
        if self._digest.hexdigest() != self._expected:
            raise ChecksumMismatch(
                f"the archive's SHA-256 is {self._digest.hexdigest()}, not {self._expected}; download it again"
            )
        self._file.seek(0)
        try:
            # "r:", else what is packed once more would be unpacked, a thousand times as long
            with (
                tarfile.open(fileobj=self._file, mode="r:", tarinfo=_Member) as archive,
                publish_folder(folder) as temporary,
            ):
                archive.extractall(temporary, members=_plain_files(archive), filter="data")
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise UnexpectedAnswer(f"the adapter can't be unpacked: {str(error)[:300]}") from error
        except OSError as error:
            if error.errno in FULL:
                raise _no_room(error) from error
            raise UnexpectedAnswer(f"the adapter can't be unpacked: {error.strerror}") from error
        return folder


class _Member(tarfile.TarInfo):
    """A member whose long name or attributes, which are read into memory, are as long as real ones at most."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in HEADERS and self.size > HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # the hook that tarfile names
        return member


def _plain_files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of an archive, as the service makes them: nothing else, and none with holes, which take no bytes."""
    for member in archive:
        if not member.isfile() or member.issparse():
            raise UnexpectedAnswer(f"the adapter's archive holds {member.name!r:.200}, which is not a plain file")
        member.mode = None  # type: ignore[assignment]  # as open as the umask says
        yield member


def _no_room(error: OSError) -> ClientError:
    return ClientError(f"the adapter can't be kept: {error.strerror}", code="disk_full")
