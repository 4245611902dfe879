"""A server that is none of ours and means harm: a client's error of one sentence, in little memory, and soon."""

import gzip
import hashlib
import io
import itertools
import json
import socket
import tarfile
import threading
from contextlib import contextmanager, suppress

import pytest

from tests.client.scripted_service import Scripted
from tuneyard_client import responses
from tuneyard_client.errors import ClientError, UnexpectedResponse

ID = "550e8400-e29b-41d4-a716-446655440000"
JOB = {"job_id": ID, "status": "running", "config": {}}
DEEP = "[" * 100_000 + "]" * 100_000
LINE = {"timestamp": "2026-01-01T00:00:00+00:00", "level": "INFO", "logger": "a", "message": "m"}
PACKED = {"Content-Encoding": "gzip"}
EVENTS = {"Content-Type": "text/event-stream"}


def log_line(**changes):
    return json.dumps(LINE | changes) + "\n"


ANSWERS = {
    "nested": ("job", Scripted(body=DEEP)),
    "an error that is nested": ("job", Scripted(500, DEEP)),
    "a line that is nested": ("logs", Scripted(body=DEEP + "\n")),
    "an event that is nested": ("events", Scripted(body=f"event: step\ndata: {DEEP}\n\n", headers=EVENTS)),
    "an event of many lines": ("events", Scripted(body="data: 1\n" * 5000 + "\n", headers=EVENTS)),
    "an event that is a list": ("events", Scripted(body="event: step\ndata: [1]\n\n", headers=EVENTS)),
    "an event that is null": ("events", Scripted(body="data: null\n\n", headers=EVENTS)),
    "an id that no header can have": ("events", Scripted(body="id: \u00e9\ndata: {}\n\n", headers=EVENTS)),
    "packed": ("job", Scripted(body=gzip.compress(bytes(2**20)), headers=PACKED)),
    "packed wrongly": ("job", Scripted(body="no gzip", headers=PACKED)),
    "a packed error": ("job", Scripted(503, "no gzip", PACKED)),
    "packed lines": ("logs", Scripted(body=gzip.compress(bytes(2**20)), headers=PACKED)),
    "a time outside the calendar": ("job", Scripted(body=json.dumps({**JOB, "start_time": 1e300}))),
    "a time that is none": ("job", Scripted(body=json.dumps({**JOB, "start_time": float("nan")}))),
    "infinite progress": ("job", Scripted(body=json.dumps(
        {**JOB, "progress": {"step": 1, "total_steps": 2, "percent": 1, "eta_seconds": float("inf")}}))),
    "a line before the year 1": ("logs", Scripted(body=log_line(timestamp="0001-01-01T00:00:00+14:00"))),
    "a line after the year 9999": ("logs", Scripted(body=log_line(timestamp="9999-12-31T23:59:59-14:00"))),
    "the same page again": ("jobs", Scripted(body=json.dumps([JOB]), headers={"X-Next-Cursor": "a"})),
    "no page": ("jobs", Scripted(body="[]", headers={"X-Next-Cursor": "a"})),
    "a superscript": ("job", Scripted(503, '{"detail": "x"}', {"Retry-After": "\u00b2"})),
    "seconds without end": ("job", Scripted(503, '{"detail": "x"}', {"Retry-After": "9" * 5000})),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_that_means_harm_is_an_error_of_one_sentence(service, call, name):
    method, answer = ANSWERS[name]
    arguments = [] if method == "jobs" else [ID]
    with pytest.raises(ClientError) as caught:
        call(service(answer).url, method, *arguments)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("charset", ["rot13", "hex", "zlib", "undefined", "utf-7"])
def test_text_is_utf_8_whatever_its_charset_is_called(service, call, charset):
    answer = Scripted(body=log_line(message="ä"), headers={"Content-Type": f"text/plain; charset={charset}"})
    assert [line.message for line in call(service(answer).url, "logs", ID)] == ["ä"]


def test_of_an_error_only_what_can_be_one_is_kept(service, call):
    forged = {"detail": {"\x1b": "x" * 9000}, "code": ["\x1b"], "request_id": "\x1b]0;owned\x07"}
    with pytest.raises(ClientError) as caught:
        call(service(Scripted(500, json.dumps(forged), {"X-Request-ID": "\x1b[2J"})).url, "job", ID)
    assert (caught.value.code, caught.value.request_id) == ("client_error", None)
    assert len(caught.value.detail) <= 4000


@contextmanager
def endless(head, chunk):
    """The URL of a server that never comes to the end of its answer."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, suppress(OSError):
                        connection.recv(65536)
                        for piece in itertools.chain([head], itertools.repeat(chunk)):
                            connection.sendall(piece)

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("method", ["job", "logs", "events", "metrics"])
@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_without_end_is_given_up(call, method, status, monkeypatch):
    monkeypatch.setattr(responses, "MAX_BYTES", 2**20)
    monkeypatch.setattr(responses, "MAX_LINE_CHARACTERS", 2**20)
    head = b"HTTP/1.1 %d x\r\n\r\n" % status
    with endless(head, b"x" * 2**16) as url, pytest.raises(UnexpectedResponse, match="more"):
        call(url, method, ID)


def archive_of(*members, mode="w", form=tarfile.PAX_FORMAT):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode, format=form) as archive:
        for name, kind, headers in members:
            member = tarfile.TarInfo(name)
            member.type, member.pax_headers, member.linkname = kind, headers, "elsewhere"
            archive.addfile(member)
    return made.getvalue()


FILE, FOLDER, PIPE, LINK, HARD = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
SPARSE = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0", "GNU.sparse.size": str(2**50)}
ARCHIVES = {
    "up": archive_of(("../../escaped", FILE, {})),
    "packed again": archive_of(("a", FILE, {}), mode="w:bz2"),
    "packed again by gzip": archive_of(("a", FILE, {}), mode="w:gz"),
    "a link": archive_of(("a", LINK, {})),
    "a hard link": archive_of(("a", HARD, {})),
    "a pipe": archive_of(("a", PIPE, {})),
    "holes": archive_of(("a", FILE, SPARSE)),
    "a name too long": archive_of(("n" * 3000, FILE, {})),
    "a NUL": archive_of(("a", FILE, {"path": "a\0b"})),
    "a file and a folder": archive_of(("a", FILE, {}), ("a/b", FILE, {})),
    "a time without end": archive_of(("a", FILE, {"mtime": "1e300"})),
    "a name of 3 MB": archive_of(("n" * 3_000_000, FILE, {}), form=tarfile.GNU_FORMAT),
    "attributes of 3 MB": archive_of(("a", FILE, {"comment": "n" * 3_000_000})),
    "nothing": b"",
    "no archive": b"\xff" * 20_000,
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_means_harm_leaves_nothing_behind(service, call, tmp_path, name):
    body = ARCHIVES[name]
    headers = {"X-Checksum-SHA256": hashlib.sha256(body).hexdigest()}
    target = tmp_path / "outer" / "adapter"
    with pytest.raises(UnexpectedResponse, match=r"^the adapter"):
        call(service(Scripted(body=body, headers=headers)).url, "download_adapter", ID, target)
    assert [path.name for path in tmp_path.rglob("*")] in ([], ["outer"])


@pytest.mark.parametrize(
    ("head", "said"), [(b"", "no valid Content-Length"), (b"Content-Length: %d\r\n" % 2**62, "too little space")]
)
def test_an_archive_that_fills_the_disk_is_not_begun(call, tmp_path, head, said):
    with endless(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n", b"x" * 2**16) as url, pytest.raises(ClientError, match=said):
        call(url, "download_adapter", ID, tmp_path / "adapter")
