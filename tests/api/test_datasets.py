"""`/datasets`: a file in, versions out, and nothing left of what was refused."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from jobs.clients.keys import KeyScope
from jobs.own_data.registry import OwnRegistry
from tests.api.keyed_clients import make_clients
from tests.jobs.own_data.rows import list_files, rows
from tests.live_service import pause_jobs, serving_api, wait_until_idle
from tests.tiny_models import save_tiny_llama
from tuneyard_wire.dataset_reference import DatasetReference

pytestmark = pytest.mark.stack


@pytest.fixture
def settings(own_database):
    return own_database.model_copy(update={"model_root": own_database.home / "models"})


@pytest.fixture
def client(settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


def post(client: httpx.Client, content: bytes, filename: str = "support.jsonl", **fields: str) -> httpx.Response:
    return client.post("/datasets", files={"file": (filename, content)}, data=fields)


def test_a_file_becomes_a_version_that_is_listed_shown_and_downloaded(client, settings):
    content = rows("a", "a") + b"[1]\n"
    added = post(client, content).json()
    assert (added["reference"], added["is_new"], added["format"], added["rows"]) == ("support@v1", True, "alpaca", 3)
    assert (added["bad"], added["duplicates"]) == (1, 1)
    assert added["bad_rows"] == [{"row": 3, "reason": "must be an object, got [1]"}]
    assert post(client, content).json() == added | {"is_new": False}
    assert post(client, rows("b"), "other.csv.jsonl", name="support").json()["version"] == "v2"

    assert [one["reference"] for one in client.get("/datasets").json()] == ["support@v2"]
    both = client.get("/datasets/support").json()
    assert [one["version"] for one in both["versions"]] == ["v1", "v2"]
    assert client.get("/datasets/support@v1").json()["versions"] == [
        {key: value for key, value in added.items() if key != "is_new"}
    ]

    download = client.get("/datasets/support@v1/content")
    assert download.content == content
    assert download.headers["X-Checksum-SHA256"] == added["sha256"] == hashlib.sha256(content).hexdigest()
    part = client.get("/datasets/support@v1/content", headers={"Range": "bytes=4-9"})
    assert (part.status_code, part.content) == (206, content[4:10])
    head = client.head("/datasets/support@v1/content")
    assert (head.headers["Content-Length"], head.content) == (str(len(content)), b"")


def test_rows_are_shown_as_they_are_and_as_a_template_writes_them(client, settings):
    save_tiny_llama(settings.model_root / "tiny")
    post(client, rows("Hello.") + b"[1]\n" + json.dumps({"instruction": "deep", "output": "x" * 70_000}).encode())

    plain = client.get("/datasets/support/rows").json()
    assert plain["reference"] == "support@v1"
    first, second, third = plain["rows"]
    assert first == {
        "row": 1,
        "values": {"instruction": "Say it.", "output": "Hello."},
        "problem": None,
        "rendered": None,
    }
    assert (second["values"], second["problem"]) == (None, "must be an object, got [1]")
    assert (third["values"], third["problem"][:12]) == (None, "it has more ")

    shown = client.get("/datasets/support/rows", params={"model": "tiny", "template": "alpaca", "limit": 1}).json()
    parts = shown["rows"][0]["rendered"]
    assert "".join(part["text"] for part in parts if part["supervised"]).startswith("Hello.")
    assert "Say it." in "".join(part["text"] for part in parts if not part["supervised"])
    for params, problem in (
        ({"model": "nobody/nothing"}, "nobody/nothing"),
        ({"model": "tiny", "template": "x"}, "'x'"),
        ({"template": "alpaca"}, "template 'alpaca' needs model"),
    ):
        refused = client.get("/datasets/support/rows", params=params)
        assert refused.status_code in (404, 422)
        assert problem in refused.json()["detail"]


def test_lists_come_in_pages(client):
    for name in ("one", "two", "three"):
        post(client, rows(name), name=name)
    first = client.get("/datasets", params={"limit": 2})
    second = client.get("/datasets", params={"limit": 2, "cursor": first.headers["X-Next-Cursor"]})

    assert [[one["name"] for one in page.json()] for page in (first, second)] == [["three", "two"], ["one"]]
    assert "X-Next-Cursor" not in second.headers
    assert client.get("/datasets", params={"cursor": "x"}).json()["code"] == "invalid_cursor"


@pytest.fixture
def paused(stack):
    """Nothing starts in the stack's pool."""
    pause_jobs(stack)
    wait_until_idle(stack)
    yield
    pause_jobs(stack, False)


def test_a_dataset_is_deleted_unless_a_job_that_has_not_ended_needs_it(client, settings, paused):
    for text in ("a", "b"):
        post(client, rows(text))
    body = {"model_name": "nobody/nothing", "dataset_version": "support@v1", "max_steps": 1}
    job = client.post("/train", json=body).json()["job_id"]
    by_name = {"base_model": "m", "dataset_name": "handbook@v1.0", "validation_dataset": "support"}
    other = client.post("/api/sft/train", json={"config": by_name | {"dataset_format": "auto"}}).json()["job_id"]
    try:
        for dataset, needing in (("support@v1", {job}), ("support@v2", {other}), ("support", {job, other})):
            refused = client.delete(f"/datasets/{dataset}")
            assert (refused.status_code, refused.json()["code"]) == (409, "dataset_in_use")
            assert any(job_id in refused.json()["detail"] for job_id in needing)
    finally:
        for job_id in (job, other):
            client.delete(f"/train/{job_id}")
    assert client.delete("/datasets/support@v1").json() == {"deleted": ["support@v1"]}
    assert client.delete("/datasets/support").json() == {"deleted": ["support@v2"]}
    assert client.get("/datasets/support").status_code == 404
    assert list_files(settings.home) == set()


def test_a_submission_with_a_version_that_is_not_there_is_refused(client):
    post(client, rows("a"))
    body = {"model_name": "nobody/nothing", "dataset_version": "support@v7", "max_steps": 1}
    refused = client.post("/train", params={"strict": True}, json=body)
    assert "support@v7 is not a version of support; it has v1" in refused.json()["detail"]


def test_a_key_sees_its_own_datasets(settings):
    mine, theirs, reader, admin = make_clients(
        settings, mine=KeyScope.SUBMIT, theirs=KeyScope.SUBMIT, reader=KeyScope.READ, admin=KeyScope.ADMIN
    )
    assert post(mine, rows("a")).status_code == 200
    assert [len(one.get("/datasets").json()) for one in (mine, theirs, reader, admin)] == [1, 0, 1, 1]
    for path in ("", "/rows", "/content"):
        assert theirs.get(f"/datasets/support{path}").status_code == 404
    assert theirs.delete("/datasets/support").status_code == 404
    assert (reader.delete("/datasets/support").status_code, post(reader, rows("b")).status_code) == (403, 403)
    taken = post(theirs, rows("b"))
    assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
    for path, body in (
        ("/train", {"model_name": "m", "dataset_version": "support@v1"}),
        ("/train/plan", {"model_name": "m", "dataset_version": "support@v1"}),
        ("/api/sft/train", {"config": {"base_model": "m", "dataset_name": "support", "dataset_format": "auto"}}),
    ):
        refused = theirs.post(path, json=body)
        assert (refused.status_code, refused.json()["code"]) == (404, "dataset_not_found")
        assert "is a dataset of another key" in refused.json()["detail"]
    assert admin.delete("/datasets/support").status_code == 200


FORM = "multipart/form-data; boundary=b"
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
NAME = b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\n'
BAD_BODIES = [
    (b"{}", "application/json", "multipart/form-data"),
    (b"", FORM, "ends before its last boundary"),
    (b"", f"multipart/form-data; boundary={'x' * 5000}", "not a valid form"),
    (b"nonsense", FORM, "not a valid form"),
    (b"n" * 20_000 + b"\r\n" + FILE + rows("a") + b"\r\n--b--\r\n", FORM, "is in its first 16384 bytes"),
    (FILE + rows("a"), FORM, "ends before its last boundary"),
    (
        b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nx\r\n--b--\r\n',
        FORM,
        "file: must be given: a field with a file",
    ),
    (b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n', FORM, "must have a name"),
    (FILE + rows("a") + b"\r\n" + FILE + rows("a") + b"\r\n--b--\r\n", FORM, "file: must be given once"),
    (b'--b\r\nContent-Disposition: form-data; name="size"\r\n\r\nx\r\n--b--\r\n', FORM, "'size' is not a field"),
    (b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + b"x" * 20_000 + b"\r\n--b--\r\n", FORM, "at most"),
    (b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\n\xff\r\n--b--\r\n', FORM, "must be UTF-8"),
    (b"--b\r\nX: " + b"y" * 20_000 + b"\r\n\r\n\r\n--b--\r\n", FORM, ""),
]


@pytest.mark.parametrize(("body", "kind", "problem"), BAD_BODIES)
def test_a_bad_form_is_refused_and_leaves_nothing(client, settings, body, kind, problem):
    refused = client.post("/datasets", content=body, headers={"Content-Type": kind})

    assert refused.status_code == 422
    assert problem in refused.json()["detail"]
    assert "got None" not in refused.json()["detail"]
    assert list_files(settings.home) == set()


@pytest.mark.parametrize(
    "before", [b"", b"\r\n", b"\n", b"This is a form.\r\n", b"--\r\n--a\r\nb--b\r\n", b"x" * 16_000 + b"\r\n"]
)
@pytest.mark.parametrize("step", [1, 7, 10**6])
def test_a_form_may_have_a_preamble_and_an_epilogue(client, before, step):
    body = before + FILE + rows("a", "b") + b"\r\n--b--\r\nThat was it."
    pieces = (body[start : start + step] for start in range(0, len(body), step))
    added = client.post("/datasets", content=pieces, headers={"Content-Type": FORM})
    assert (added.status_code, added.json()["rows"]) == (200, 2), added.text
    assert client.get("/datasets/a/content").content == rows("a", "b")


@pytest.mark.parametrize(
    ("filename", "before", "problem"),
    [("a.zip", b"", "file must end in one of"), ("a.jsonl", NAME + b"a b\r\n", "name must be 1 to 100")],
)
def test_names_are_refused_before_the_file_is_read(client, settings, filename, before, problem):
    not_ended = before + FILE.replace(b"a.jsonl", filename.encode()) + rows("a")
    refused = client.post("/datasets", content=not_ended, headers={"Content-Type": FORM})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_config")
    assert problem in refused.json()["detail"]
    assert "got None" not in refused.json()["detail"]
    assert list_files(settings.home) == set()


@pytest.mark.parametrize(
    "name", ["../x", "a/b", ".git", "a@v1", "uploads", "data.jsonl", "a\nb", "", "x" * 101, "HEAD~1"]
)
def test_a_hostile_name_is_refused(client, settings, name):
    refused = post(client, rows("a"), name=name)

    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_config")
    assert list_files(settings.home) == set()


def test_a_hostile_file_name_is_only_shown(client, settings):
    added = post(client, rows("a"), "../../../etc/cron.d/evil\u202e.jsonl", name="evil")
    assert added.status_code == 422  # a character that turns the text's direction
    added = post(client, rows("a"), "../../../etc/cron.d/evil.jsonl")
    assert (added.json()["filename"], added.json()["name"]) == ("evil.jsonl", "evil")
    assert len(list_files(settings.home)) == 1


def test_a_quote_in_a_file_name_is_what_it_is_in_an_upload_in_parts(client):
    added = post(client, rows("a"), 'my "own" rows.jsonl').json()
    assert (added["reference"], added["filename"]) == ("my-own-rows@v1", 'my "own" rows.jsonl')
    begun = client.post("/datasets/uploads", json={"filename": 'my "own" rows.jsonl', "bytes": 9})
    assert begun.json()["filename"] == added["filename"]
    refused = post(client, rows("a"), "two\nlines.jsonl")
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert "printable characters, got 'two\\nlines.jsonl'" in refused.json()["detail"]


def test_a_file_beyond_the_limit_is_refused_before_it_is_read(settings):
    with TestClient(create_app(settings.model_copy(update={"max_upload_bytes": 1000}))) as client:
        refused = post(client, b"x" * 200_000)
        assert (refused.status_code, "TUNEYARD_MAX_UPLOAD_BYTES" in refused.json()["detail"]) == (413, True)

        def stream() -> Iterator[bytes]:
            yield FILE
            for _ in range(100):
                yield b"x" * 10_000

        chunked = client.post("/datasets", content=stream(), headers={"Content-Type": FORM})
        assert chunked.status_code == 413
    assert list_files(settings.home) == set()


def test_a_full_disk_is_an_error_and_leaves_nothing(settings, small_disk):
    small_disk.chmod(0o700)
    with TestClient(create_app(settings.model_copy(update={"home": small_disk}))) as client:

        def stream() -> Iterator[bytes]:
            yield FILE
            for _ in range(400):
                yield rows("x" * 10_000)
            yield b"\r\n--b--\r\n"

        refused = client.post("/datasets", content=stream(), headers={"Content-Type": FORM})
        assert (refused.status_code, refused.json()["code"]) == (507, "disk_full")
        announced = post(client, rows("x" * 4_000_000))
        assert (announced.status_code, announced.json()["code"]) == (507, "disk_full")
    assert list_files(small_disk) == set()


def test_twenty_at_once_are_all_taken_and_the_service_answers_meanwhile(settings):
    with (
        serving_api(settings) as url,
        httpx.Client(base_url=url, timeout=300) as client,
        ThreadPoolExecutor(21) as pool,
    ):
        answers = [pool.submit(post, client, rows(str(number)), name=f"set-{number}") for number in range(20)]
        while not all(answer.done() for answer in answers):
            assert client.get("/health").status_code == 200
        assert {answer.result().status_code for answer in answers} == {200}
        assert len(client.get("/datasets").json()) == 20
    assert len(list_files(settings.home)) == 20


def test_a_client_that_goes_away_leaves_nothing(settings):
    import socket
    import time
    from urllib.parse import urlsplit

    with serving_api(settings) as url:
        with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port)) as line:
            head = (
                f"POST /datasets HTTP/1.1\r\nHost: localhost\r\nContent-Type: {FORM}\r\nContent-Length: 100000\r\n\r\n"
            )
            line.sendall(head.encode() + FILE + rows("a"))
            deadline = time.monotonic() + 60
            while not list_files(settings.home):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        deadline = time.monotonic() + 60
        while list_files(settings.home):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert OwnRegistry(settings.home).find(DatasetReference("a")) is None
    assert not [*Path(settings.home, "own-data/staging").iterdir()]
