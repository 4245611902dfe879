"""What can be had of one job over HTTP: a real server over the real stack, jobs put into the state that is wanted."""

import base64
import hashlib
import io
import json
import logging
import tarfile
import threading
import time
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import uvicorn
from prefect.client.schemas.actions import LogCreate
from prefect.states import Completed

from api.main import create_app
from api.streaming import HEARTBEAT_SECONDS
from jobs.folders import checkpoint_folder, job_folder
from jobs.service.job_service import JobService
from jobs.spec import JobSpec
from jobs.storage.events import write_event
from jobs.storage.reports import ProgressWriter, write_report
from sft.checkpoints.folders import seal_checkpoint
from sft.config import SFTConfig
from tests.conftest import free_port, wait_until
from tuneyard_wire.jobs import Progress, Result

pytestmark = pytest.mark.stack

CONFIG = SFTConfig(base_model="tiny/llama", dataset_name="handbook@v1.0", dataset_format="alpaca", save_total_limit=2)
DIALECTS = ("/train", "/api/sft/jobs")


@pytest.fixture(scope="module")
def service(stack):
    service = JobService(stack)
    yield service
    service.close()


@pytest.fixture(scope="module")
def api(stack):
    """A client of the API, served in this process on a real port."""
    port = free_port()
    app = create_app(stack)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        thread.start()
        wait_until(lambda: server.started, 90)
        yield client
        server.should_exit = True
        thread.join()
    app.state.access.open().close()


@pytest.fixture
def job(service):
    """A job that waits: nothing happens to it unless the test does it."""
    return service.create(JobSpec(config=CONFIG, adapter_name="support"))


def write(service, job, event, **data):
    with service.engine.begin() as connection:
        write_event(connection, job.id, event, data)


def read_stream(lines):
    """The events of a text/event-stream: id, name and data."""
    fields = {}
    for line in lines:
        if not line and "data" in fields:
            yield fields["id"], fields["event"], json.loads(fields["data"])
            fields = {}
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value


def get_events(api, path, **headers):
    answer = api.get(path, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [*read_stream(answer.text.split("\n"))]


# -- events


@pytest.mark.parametrize(("dialect", "word"), [("/train", "cancelled"), ("/api/sft/jobs", "stopped")])
def test_events_are_replayed_and_taken_up_where_the_client_left_off(api, service, job, dialect, word):
    write(service, job, "phase", phase="training")
    write(service, job, "evaluate", step=0, eval_loss=3.5)
    write(service, job, "checkpoint", step=5, path="/out/checkpoint-5")
    service.cancel(job.id)
    path = f"{dialect}/{job.id}/events"

    events = get_events(api, path)
    assert [name for _, name, _ in events] == ["phase", "evaluate", "checkpoint", "end"]
    assert [data.get("phase") or data.get("eval_loss") or data.get("path") for _, _, data in events[:3]] == [
        "training",
        3.5,
        "/out/checkpoint-5",
    ]
    assert events[3][2]["status"] == word
    assert get_events(api, path, **{"Last-Event-ID": events[1][0]}) == events[2:]
    assert get_events(api, path, **{"Last-Event-ID": events[2][0]}) == events[3:]
    seen_all = api.get(path, headers={"Last-Event-ID": "end"})
    assert (seen_all.status_code, seen_all.content) == (204, b"")


def test_new_events_come_as_they_happen_and_the_stream_ends_with_the_job(api, service, job):
    write(service, job, "phase", phase="starting")
    with api.stream("GET", f"/train/{job.id}/events") as answer:
        events = read_stream(answer.iter_lines())
        assert next(events)[1] == "phase"
        write(service, job, "begin", step=0, total_steps=3)
        began_at = time.monotonic()
        assert next(events)[2]["total_steps"] == 3
        assert time.monotonic() - began_at < HEARTBEAT_SECONDS  # a second or two where nothing else runs
        ProgressWriter(service.engine.begin, job.id)(Progress.example() | {"step": 1, "total_steps": 3, "loss": 2.5})
        _, name, data = next(events)
        assert (name, data["loss"], "recent" in data) == ("step", 2.5, False)
        service.cancel(job.id)
        assert [name for _, name, _ in events] == ["end"]
    assert time.monotonic() - began_at < 60


@pytest.mark.parametrize(("dialect", "status"), [("/train", 422), ("/api/sft/jobs", 400)])
def test_an_id_that_was_never_sent_is_refused(api, job, dialect, status):
    answer = api.get(f"{dialect}/{job.id}/events", headers={"Last-Event-ID": "yesterday"})

    assert answer.status_code == status
    assert "yesterday" in answer.json()["detail"]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("resource", ["events", "logs", "metrics", "checkpoints", "adapter"])
@pytest.mark.parametrize("job_id", ["550e8400-e29b-41d4-a716-446655440000", "nonsense"])
def test_an_unknown_job_is_404_before_anything_is_streamed(api, dialect, resource, job_id):
    answer = api.get(f"{dialect}/{job_id}/{resource}", params={"follow": "true"} if resource == "logs" else {})

    assert answer.status_code == 404
    assert answer.json()["detail"] == f"Job {job_id} not found"


# -- logs

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def log(service, job, *messages, start=NOON, level=logging.INFO):
    lines = [
        LogCreate(
            name="tasks.train", level=level, message=text, timestamp=start + timedelta(seconds=n), flow_run_id=job.id
        )
        for n, text in enumerate(messages)
    ]
    service.client.create_logs(lines)


def test_a_log_is_one_line_a_record_whatever_it_says(api, service, job):
    log(service, job, "Loaded", "Traceback:\n  line 1\r\nboom \x1b[31m\u2028end", "Saved\tto C:\\n")
    path = f"/train/{job.id}/logs"

    plain = api.get(path)
    assert plain.headers["content-type"] == "text/plain; charset=utf-8"
    assert plain.text == (
        "2026-01-02T12:00:00.000Z INFO    tasks.train: Loaded\n"
        "2026-01-02T12:00:01.000Z INFO    tasks.train: Traceback:\\n  line 1\\r\\nboom \\x1b[31m\\u2028end\n"
        "2026-01-02T12:00:02.000Z INFO    tasks.train: Saved\tto C:\\n\n"
    )
    as_json = api.get(path, params={"format": "json"})
    assert as_json.headers["content-type"] == "application/x-ndjson"
    first, second, third = (json.loads(line) for line in as_json.text.splitlines())
    assert first == {
        "timestamp": "2026-01-02T12:00:00+00:00",
        "level": "INFO",
        "logger": "tasks.train",
        "message": "Loaded",
    }
    assert second["message"] == "Traceback:\n  line 1\r\nboom \x1b[31m\u2028end"
    assert third["message"] == "Saved\tto C:\\n"
    assert api.get(path, headers={"Accept": "application/json"}).text == as_json.text
    assert api.get(path, headers={"Accept": "application/json"}, params={"format": "text"}).text == plain.text


def test_the_tail_of_a_long_log(api, service, job):
    log(service, job, *[f"line {n}" for n in range(450)])
    path = f"/api/sft/jobs/{job.id}/logs"

    def messages(**params):
        return [line.rsplit(": ", 1)[1] for line in api.get(path, params=params).text.splitlines()]

    assert messages() == [f"line {n}" for n in range(450)]
    assert messages(tail=3) == ["line 447", "line 448", "line 449"]
    assert messages(tail=300) == [f"line {n}" for n in range(150, 450)]
    assert messages(tail=0) == []
    assert api.get(path, params={"tail": -1}).status_code == 400


def test_a_followed_log_goes_on_until_the_job_ends(api, service, job):
    started_at = datetime.now(UTC) - timedelta(seconds=1)  # so that no line is of a time to come
    log(service, job, "one", "two", start=started_at)
    with api.stream("GET", f"/train/{job.id}/logs", params={"follow": "true", "tail": 1}) as answer:
        lines = answer.iter_lines()
        assert next(lines).endswith(": two")
        log(service, job, "three", start=started_at + timedelta(seconds=1))  # as late as the line before it
        assert next(lines).endswith(": three")
        service.cancel(job.id)
        log(service, job, "four", start=datetime.now(UTC))
        assert [line.rsplit(": ")[1] for line in lines] == ["four"]


# -- metrics and checkpoints


def test_each_datasets_loss_is_a_series_of_its_own(api, service, job):
    write(service, job, "evaluate", **{"step": 2, "eval_loss": 2.5, "eval_loss/a_v1": 2.0, "eval_runtime": 1.0})
    series = api.get(f"/train/{job.id}/metrics").json()["series"]
    assert series["eval_loss"] == [[2, 2.5]]
    assert series["eval_loss/a_v1"] == [[2, 2.0]]
    assert "eval_runtime" not in series
    csv = api.get(f"/train/{job.id}/metrics", params={"format": "csv"}).text
    assert csv.splitlines() == [
        "step,loss,learning_rate,grad_norm,tokens_per_second,eval_loss,eval_loss/a_v1",
        "2,,,,,2.5,2.0",
    ]


def test_metrics_as_json_and_csv(api, service, job):
    write(service, job, "evaluate", step=0, eval_loss=3.5)
    writer = ProgressWriter(service.engine.begin, job.id, min_interval_seconds=60)
    for step, loss, rate in ((1, 3.25, 1e-05), (2, 3.0, 2e-05), (3, 2.5, 3e-05)):
        values = {"loss": loss, "learning_rate": rate, "grad_norm": None, "tokens_per_second": 100.0}
        writer(Progress.example() | {"step": step, "total_steps": 3, **values})
    write(service, job, "evaluate", step=3, eval_loss=2.25)

    series = api.get(f"/train/{job.id}/metrics").json()["series"]
    assert series == {
        "loss": [[1, 3.25], [2, 3.0], [3, 2.5]],
        "learning_rate": [[1, 1e-05], [2, 2e-05], [3, 3e-05]],
        "grad_norm": [],
        "tokens_per_second": [[1, 100.0], [2, 100.0], [3, 100.0]],
        "eval_loss": [[0, 3.5], [3, 2.25]],
    }
    for wish in ({"params": {"format": "csv"}}, {"headers": {"Accept": "text/csv"}}):
        answer = api.get(f"/api/sft/jobs/{job.id}/metrics", **wish)
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert answer.text == (
            "step,loss,learning_rate,grad_norm,tokens_per_second,eval_loss\n"
            "0,,,,,3.5\n"
            "1,3.25,1e-05,,100.0,\n"
            "2,3.0,2e-05,,100.0,\n"
            "3,2.5,3e-05,,100.0,2.25\n"
        )


def test_a_step_trained_again_after_a_restart_counts_as_it_went_last(api, service, job):
    for loss in (9.0, 2.0):
        ProgressWriter(service.engine.begin, job.id)(Progress.example() | {"step": 5, "total_steps": 9, "loss": loss})

    assert api.get(f"/train/{job.id}/metrics").json()["series"]["loss"] == [[5, 2.0]]


def test_checkpoints_are_read_from_the_jobs_folder(api, service, job, stack):
    folder = checkpoint_folder(stack, CONFIG, job.id)
    for step in (10, 5):
        (folder / f"checkpoint-{step}").mkdir(parents=True)
        (folder / f"checkpoint-{step}" / "adapter.bin").write_bytes(bytes(1000))
    seal_checkpoint(folder / "checkpoint-5")

    five, ten = api.get(f"/train/{job.id}/checkpoints").json()["checkpoints"]
    assert (five["step"], five["path"], five["complete"]) == (5, str(folder / "checkpoint-5"), True)
    assert five["bytes"] == 1000 + (folder / "checkpoint-5" / "complete.json").stat().st_size
    assert datetime.now(UTC) - datetime.fromisoformat(five["time"]) < timedelta(minutes=1)
    assert (ten["step"], ten["bytes"], ten["complete"]) == (10, 1000, False)


def test_checkpoints_of_a_job_on_another_machine_are_known_from_its_events(api, service, job):
    for step in (5, 10, 15):
        write(service, job, "checkpoint", step=step, path=f"/far/checkpoint-{step}")

    checkpoints = api.get(f"/api/sft/jobs/{job.id}/checkpoints").json()["checkpoints"]
    assert [(entry["step"], entry["path"], entry["bytes"]) for entry in checkpoints] == [
        (10, "/far/checkpoint-10", None),
        (15, "/far/checkpoint-15", None),
    ]


# -- the adapter


@pytest.fixture
def adapter(stack, service, job):
    """The folder of a completed job's adapter."""
    folder = job_folder(stack, CONFIG, job.id) / "adapter"
    (folder / "nested").mkdir(parents=True)
    (folder / "adapter_config.json").write_text('{"r": 8}')
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 5000)
    (folder / "nested" / "empty.txt").touch()
    result = Result.example() | {"model_name": "support", "model_version": "7", "adapter_path": str(folder)}
    write_report(service.engine, job.id, result=result, output_path=str(folder))
    service.client.set_flow_run_state(job.id, Completed(), force=True)
    return folder


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_adapter_is_an_archive_with_its_checksum(api, job, adapter, dialect):
    answer = api.get(f"{dialect}/{job.id}/adapter")

    digest = hashlib.sha256(answer.content)
    assert answer.headers["x-checksum-sha256"] == digest.hexdigest()
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert answer.headers["content-disposition"] == 'attachment; filename="support-7.tar"'
    assert answer.headers["content-type"] == "application/x-tar"
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        content = {entry.name: archive.extractfile(entry).read() for entry in archive}
    assert content == {
        "adapter_config.json": b'{"r": 8}',
        "adapter_model.safetensors": bytes(range(256)) * 5000,
        "nested/empty.txt": b"",
    }


@pytest.mark.parametrize("dialect", DIALECTS)
def test_head_tells_length_and_checksum_and_reads_the_files_once(api, job, adapter, dialect):
    head = api.head(f"{dialect}/{job.id}/adapter")
    answer = api.get(f"{dialect}/{job.id}/adapter")

    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "content-disposition", "x-checksum-sha256", "repr-digest", "etag"):
        assert head.headers[name] == answer.headers[name]
    assert int(head.headers["content-length"]) == len(answer.content)
    assert "GET, HEAD" in api.put(f"{dialect}/{job.id}/adapter").headers["allow"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_download_that_broke_is_gone_on_with(api, job, adapter, dialect):
    path = f"{dialect}/{job.id}/adapter"
    whole = api.get(path)
    tag, size = whole.headers["etag"], len(whole.content)
    assert whole.headers["accept-ranges"] == "bytes"

    rest = api.get(path, headers={"Range": "bytes=1000-", "If-Range": tag})
    assert (rest.status_code, rest.headers["content-range"]) == (206, f"bytes 1000-{size - 1}/{size}")
    assert (whole.content[:1000] + rest.content, rest.headers["etag"]) == (whole.content, tag)
    assert int(rest.headers["content-length"]) == len(rest.content)

    other = api.get(path, headers={"Range": "bytes=1000-", "If-Range": '"another"'})
    assert (other.status_code, other.content) == (200, whole.content)
    behind = api.get(path, headers={"Range": f"bytes={size}-"})
    assert (behind.status_code, behind.json()["code"]) == (416, "range_not_satisfiable")
    assert behind.headers["content-range"] == f"bytes */{size}"


def test_head_of_a_job_without_an_adapter(api, job):
    assert api.head(f"/train/{job.id}/adapter").status_code == 409
    assert api.head("/train/nobody/adapter").status_code == 404


def test_a_changed_file_has_another_checksum(api, job, adapter):
    first = api.get(f"/train/{job.id}/adapter").headers["x-checksum-sha256"]
    (adapter / "adapter_config.json").write_text('{"r": 9}')
    answer = api.get(f"/train/{job.id}/adapter")

    assert answer.headers["x-checksum-sha256"] == hashlib.sha256(answer.content).hexdigest() != first


def test_a_link_out_of_the_jobs_folder_is_not_followed(api, job, adapter, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (adapter / "tokenizer.json").symlink_to(tmp_path / "secret")
    answer = api.get(f"/train/{job.id}/adapter")

    assert (answer.status_code, answer.json()["code"]) == (404, "adapter_not_found")
    assert "tokenizer.json leads out of the job's folder" in answer.json()["detail"]


def test_a_path_outside_the_jobs_folder_is_not_served(api, service, job, adapter, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    write_report(service.engine, job.id, output_path=str(tmp_path))
    answer = api.get(f"/train/{job.id}/adapter")

    assert answer.status_code == 404  # and the registry has no version 7 of it
    assert answer.json()["detail"].startswith("models:/support/7 is not in the registry")


def test_a_job_that_has_not_completed_has_no_adapter_yet(api, service, job):
    waiting = api.get(f"/train/{job.id}/adapter")
    service.cancel(job.id)
    cancelled = api.get(f"/train/{job.id}/adapter")

    assert (waiting.status_code, waiting.json()["code"]) == (409, "adapter_not_ready")
    assert waiting.json()["detail"] == (f"Job {job.id} is created; its adapter can be downloaded once it has completed")
    assert cancelled.status_code == 409
    assert cancelled.json()["detail"] == (
        f"Job {job.id} was cancelled, so it has no adapter. Only completed jobs have one"
    )
