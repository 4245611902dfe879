"""Parse streamed responses: events, log lines, and the archive of an adapter."""

import hashlib
import json
import re
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tuneyard_client.calls import Call, events_request
from tuneyard_client.errors import ChecksumMismatch, ClientError, ServiceUnreachable, UnexpectedResponse
from tuneyard_client.folders import FULL, UNWRITABLE, publish_folder
from tuneyard_client.responses import check_disk_space, check_length
from tuneyard_client.retries import MAX_TRIES, pause_after_failures
from tuneyard_wire.records import JobEvent

EXTENDED_HEADERS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
MAX_HEADER_BYTES = 2**20
CHECKSUM_HEADER = "X-Checksum-SHA256"
END = "end"
MAX_ID_CHARACTERS = 200  # of an event's id; the service's have at most 19
MAX_FIELD_LINES = 1000  # of one event; the service's have three
_LINE_END = re.compile(r"\r\n|\n|\r(?!$)")  # a \r at the end may be the first half of \r\n


class EventReader:
    """Parse the server-sent events of a job; after a lost connection, continue after the last event.

    Follows "Interpreting an event stream" of the HTML standard, section 9.2.6.
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
        """Return the call for the events not seen yet. A partial event of the last connection is dropped."""
        self._buffer, self._fields, self._field_lines = "", {}, 0
        return events_request(self._job_id, self._last_event_id)

    def feed(self, text: str) -> list[JobEvent]:
        """Parse a piece of the stream; returns the events it completes. Raises UnexpectedResponse."""
        *lines, rest = _LINE_END.split(self._buffer + text)
        self._buffer = check_length(rest)
        return [event for line in lines if (event := self._take(line)) is not None]

    def pause_after_loss(self) -> float:
        """Seconds until the next connection. Raises ServiceUnreachable if the last MAX_TRIES brought no event."""
        self._failures += 1
        if self._failures >= MAX_TRIES:
            raise ServiceUnreachable(f"the event stream of job {self._job_id} was lost; is the service running?")
        return pause_after_failures(self._failures)

    def _take(self, line: str) -> JobEvent | None:
        if line:
            name, _, value = line.partition(":")
            if name:
                self._fields.setdefault(name, []).append(value.removeprefix(" "))
                self._field_lines += 1
                if self._field_lines > MAX_FIELD_LINES:
                    raise UnexpectedResponse(
                        f"an event has more than {MAX_FIELD_LINES} lines; is this a Tuneyard service?"
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
            raise UnexpectedResponse(f"the event {event:.50} is not JSON; is this a Tuneyard service?") from error


def _check_id(event_id: str) -> str:
    """Return an id that can be sent back in a header. Raises UnexpectedResponse for any other."""
    if not (event_id.isascii() and event_id.isprintable()) or len(event_id) > MAX_ID_CHARACTERS:
        raise UnexpectedResponse(f"an event has the invalid id {event_id[:50]!r}; is this a Tuneyard service?")
    return event_id


class LineReader:
    """Join pieces of text and split them into lines."""

    def __init__(self) -> None:
        self._rest = ""

    def feed(self, text: str) -> list[str]:
        """Take a piece; returns the lines it completes, without empty ones. Raises UnexpectedResponse."""
        *lines, rest = (self._rest + text).split("\n")
        self._rest = check_length(rest)
        return [line for line in lines if line.strip()]

    def finish(self) -> list[str]:
        """Return the last line if it has no line end."""
        return self.feed("\n")


class AdapterArchive:
    """Collect the archive of an adapter in a temporary file; unpack it once its checksum is right."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        check_disk_space(headers.get("Content-Length"))
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
        """Append bytes. Raises ClientError if the disk is full."""
        self._digest.update(chunk)
        try:
            self._file.write(chunk)
        except OSError as error:
            raise _disk_full(error) from error

    def unpack(self, folder: Path) -> Path:
        """Unpack the archive into `folder` atomically; returns it.

        Raises:
            ChecksumMismatch: the download is damaged.
            UnexpectedResponse: it is not an archive of plain files.
            ClientError: the disk is full, or the folder can't be made.
        """
        if self._digest.hexdigest() != self._expected:
            raise ChecksumMismatch(
                f"the archive's SHA-256 is {self._digest.hexdigest()}, not {self._expected}; download it again"
            )
        self._file.seek(0)
        try:
            # "r:" takes no compressed archive, which may expand a thousandfold
            with (
                tarfile.open(fileobj=self._file, mode="r:", tarinfo=_Member) as archive,
                publish_folder(folder) as temporary,
            ):
                archive.extractall(temporary, members=_plain_files(archive), filter="data")
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            raise UnexpectedResponse(f"the adapter can't be unpacked: {str(error)[:300]}") from error
        except OSError as error:
            if error.errno in FULL:
                raise _disk_full(error) from error
            if error.errno in UNWRITABLE:
                problem = f"{folder} can't be made ({error.strerror}); choose another folder"
                raise ClientError(problem, code="folder_unwritable") from error
            raise UnexpectedResponse(f"the adapter can't be unpacked: {error.strerror}") from error
        return folder


class _Member(tarfile.TarInfo):
    """A member that limits its extended headers (long names, attributes), which tarfile reads into memory."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in EXTENDED_HEADERS and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # tarfile documents this hook
        return member


def _plain_files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the files of an archive. Raises UnexpectedResponse for anything else, sparse files included."""
    for member in archive:
        if not member.isfile() or member.issparse():
            raise UnexpectedResponse(f"the adapter's archive holds {member.name!r:.200}, which is not a plain file")
        member.mode = None  # type: ignore[assignment]  # permissions follow the umask
        yield member


def _disk_full(error: OSError) -> ClientError:
    return ClientError(f"the adapter can't be saved: {error.strerror}", code="disk_full")
