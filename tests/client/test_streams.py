"""Events, log lines and archives over connections that break."""

import hashlib
import io
import pickle
import subprocess
import tarfile
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from tests.client.scripted_service import Scripted
from tuneyard_client.errors import ChecksumMismatch, ClientError, Conflict, ServiceUnreachable, error_for
from tuneyard_client.retries import read_retry_after
from tuneyard_client.streams import EventReader

STREAM = (
    ': hello\n\nid: 1\nevent: phase\ndata: {"phase": "training"}\n\n'
    'id: 2\r\nevent: step\r\ndata: {"step": 1,\r\ndata: "loss": "\u2028"}\r\n\r\n'
    'id: end\nevent: end\ndata: {"status": "completed"}\n\n'
)
EVENTS = [
    ("1", "phase", {"phase": "training"}),
    ("2", "step", {"step": 1, "loss": "\u2028"}),
    ("end", "end", {"status": "completed"}),
]


def plain(events):
    return [(event.id, event.event, event.data) for event in events]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_events_are_the_same_in_whatever_pieces_they_come(size):
    reader = EventReader("1")
    pieces = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert plain(event for piece in pieces for event in reader.feed(piece)) == EVENTS
    assert reader.has_ended


@pytest.mark.parametrize("cut_after", [70, 60])
def test_a_broken_stream_is_taken_up_behind_the_last_event(service, call, cut_after):
    broken = Scripted(body=STREAM, cut_after=cut_after)
    server = service(broken, Scripted(body=STREAM[STREAM.index("id: 2") :]))

    assert plain(call(server.url, "events", "1")) == EVENTS
    assert "last-event-id" not in server.received[0].headers
    assert server.received[1].headers["last-event-id"] == "1"


def test_events_go_on_from_where_the_caller_was(service, call):
    server = service(Scripted(body=STREAM[STREAM.index("id: end") :]))
    assert plain(call(server.url, "events", "1", "2")) == EVENTS[2:]
    assert server.received[0].headers["last-event-id"] == "2"


def test_nothing_comes_after_the_end(service, call):
    assert call(service(Scripted(204)).url, "events", "1", "end") == []


def test_a_stream_that_brings_nothing_again_and_again_is_given_up(service, call):
    server = service(Scripted(body=": nothing\n\n"))
    with pytest.raises(ServiceUnreachable, match="the event stream of job 1 was lost"):
        call(server.url, "events", "1")
    assert len(server.received) == 5


def test_log_lines(service, call):
    line = '{"timestamp": "2026-01-02T03:04:05+00:00", "level": "INFO", "logger": "tasks", "message": "a\\nb"}'
    server = service(Scripted(body=f"{line}\n{line}"))
    lines = call(server.url, "logs", "1", follow=True, tail=2)

    assert [(entry.level, entry.message) for entry in lines] == [("INFO", "a\nb")] * 2
    assert server.received[0].path == "/train/1/logs?format=json&follow=true&tail=2"


def archive(name="adapter_config.json"):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 2
        tar.addfile(entry, io.BytesIO(b"{}"))
    return file.getvalue()


def sent(content):
    return Scripted(body=content, headers={"X-Checksum-SHA256": hashlib.sha256(content).hexdigest()})


def test_an_adapter_is_unpacked_into_its_folder(service, call, tmp_path):
    assert call(service(sent(archive())).url, "download_adapter", "1", tmp_path / "a") == tmp_path / "a"
    assert (tmp_path / "a" / "adapter_config.json").read_text() == "{}"
    with pytest.raises(ClientError, match="is not empty; choose another folder"):
        call("http://127.0.0.1:9", "download_adapter", "1", tmp_path / "a")


def test_a_folder_that_can_not_be_made_is_named(service, call):
    with pytest.raises(ClientError, match=r"/proc/adapter can't be made \(.*\); choose another folder") as caught:
        call(service(sent(archive())).url, "download_adapter", "1", "/proc/adapter")
    assert caught.value.code == "folder_unwritable"


def test_a_folder_in_one_that_is_not_writable_is_refused_before_the_download(call, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(ClientError, match=rf"lies in {small_disk}, which is not writable; choose another folder"):
        call("http://127.0.0.1:9", "download_adapter", "1", small_disk / "a")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Scripted(body=archive(), headers={"X-Checksum-SHA256": "0" * 64}), ChecksumMismatch),
        (Scripted(body=archive()), ChecksumMismatch),
        (Scripted(body=archive(), cut_after=600), ServiceUnreachable),
        (sent(b"no archive"), ClientError),
        (sent(archive("../outside")), ClientError),
        (Scripted(409, '{"detail": "not completed", "code": "job_conflict"}'), Conflict),
    ],
)
def test_a_download_that_fails_leaves_nothing(service, call, tmp_path, answer, kind):
    with pytest.raises(kind):
        call(service(answer).url, "download_adapter", "1", tmp_path / "a")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("after", [0, 1, 600, 10_000])
def test_a_download_that_is_cut_off_says_so_and_the_next_one_is_whole(service, call, tmp_path, after):
    whole = sent(archive())
    cut = Scripted(body=whole.body, headers=whole.headers, cut_after=after)
    url = service(cut, whole).url
    with pytest.raises(ServiceUnreachable, match=r"cut off before .* complete \(.*\).*Try again$") as caught:
        call(url, "download_adapter", "1", tmp_path / "a")
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.rglob("*")) == []
    call(url, "download_adapter", "1", tmp_path / "a")
    assert (tmp_path / "a" / "adapter_config.json").exists()


def test_retry_after_is_read_in_both_forms():
    assert read_retry_after("120") == 120
    assert read_retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) == pytest.approx(
        60, abs=2
    )
    assert read_retry_after(format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True)) == 0
    assert read_retry_after("soon") is None
    assert read_retry_after(None) is None


def test_errors_survive_pickling():
    copy = pickle.loads(pickle.dumps(error_for(409, {"detail": "d", "code": "c", "request_id": "r"}, None)))  # noqa: S301
    assert type(copy) is Conflict
    assert (str(copy), copy.status, copy.code, copy.request_id) == ("d", 409, "c", "r")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("link", "is a link"),
        ("dangling", "is a link"),
        ("file/below", "which is a file"),
        ("n" * 256, "can't be a folder"),
        (".", "is not a new folder"),
    ],
)
def test_a_folder_that_can_not_be_made_is_told_before_the_download(call, tmp_path, monkeypatch, name, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path / "empty")
    folder = Path(name) if name == "." else tmp_path / name
    with pytest.raises(ClientError, match=said) as caught:
        call("http://127.0.0.1:9", "download_adapter", "1", folder)  # nothing is asked
    assert caught.value.code == "folder_exists"


def test_the_longest_name_of_a_folder_will_do(service, call, tmp_path):
    folder = tmp_path / ("n" * 255)
    assert call(service(sent(archive())).url, "download_adapter", "1", folder) == folder
