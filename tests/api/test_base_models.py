"""Base models over HTTP: uploaded by the client, listed, shown, and kept while a job needs them."""

import hashlib
import shutil
import threading
from uuid import uuid4

import httpx
import pytest

from jobs.base_models.catalog import identify_root
from jobs.base_models.uploads import UPLOADS
from tests.live_service import pause_jobs, serving_api
from tests.model_files import read_files, write_model
from tuneyard_client import Tuneyard, model_calls
from tuneyard_client.errors import ClientError, Conflict, NotFound

pytestmark = pytest.mark.stack


@pytest.fixture(scope="module")
def url(stack):
    with serving_api(stack) as address:
        yield address


@pytest.fixture(autouse=True)
def clean_root(stack):
    """The stack is shared: nothing of a test's models stays."""
    yield
    for folder in ("up", UPLOADS):
        shutil.rmtree(stack.model_root / folder, ignore_errors=True)


@pytest.fixture
def client(url):
    with Tuneyard(url) as client:
        yield client


@pytest.fixture
def http(url):
    with httpx.Client(base_url=url, timeout=60) as http:
        yield http


@pytest.fixture
def name():
    return f"up/{uuid4().hex[:8]}"


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "base", shards=2)


def announce(http, name, files):
    listed = [
        {"path": path, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for path, content in files.items()
    ]
    return http.post("/models", json={"name": name, "files": listed})


def put(http, upload, path, content, offset=0):
    return http.put(f"/model-uploads/{upload}", params={"path": path, "offset": offset}, content=content)


def test_the_client_uploads_a_folder_in_pieces(client, stack, folder, name, monkeypatch):
    monkeypatch.setattr(model_calls, "PIECE_BYTES", 700)
    shown = []
    model = client.base_models.add(folder, name, lambda sent, total: shown.append((sent, total)))

    assert (model.name, model.parameters, model.problem) == (name, 2000, None)
    assert client.base_models.get(name) == model
    assert model in client.base_models.list()
    assert client.base_models.root_id() == identify_root(stack)
    assert read_files(stack.model_root / name) == read_files(folder)
    total = sum(map(len, read_files(folder).values()))
    assert shown[-1] == (total, total)
    assert len(shown) > total / 700

    again = len(shown)
    assert client.base_models.add(folder, name, lambda *sent: shown.append(sent)) == model
    assert len(shown) == again  # nothing was sent


def test_what_breaks_off_goes_on_where_it_was(client, stack, folder, name, monkeypatch):
    monkeypatch.setattr(model_calls, "PIECE_BYTES", 500)

    class LostError(Exception):
        pass

    def lose(sent, _total):
        if sent > 3000:
            raise LostError

    with pytest.raises(LostError):
        client.base_models.add(folder, name, lose)
    with pytest.raises(NotFound):
        client.base_models.get(name)
    sent = []
    client.base_models.add(folder, name, lambda now, _total: sent.append(now))
    assert sent[0] > 3000
    assert read_files(stack.model_root / name) == read_files(folder)


def test_an_empty_file_has_a_piece_without_bytes_as_the_document_says(http, name):
    files = {"config.json": b"{}", "model.safetensors": b"{}", "merges.txt": b""}
    upload = announce(http, name, files).json()["upload_id"]
    assert put(http, upload, "merges.txt", b"").json()["complete"] is True
    assert put(http, upload, "config.json", b"").json()["complete"] is False
    operation = http.get("/openapi.json").json()["paths"]["/model-uploads/{upload_id}"]["put"]
    assert not operation["requestBody"].get("required", False)
    assert http.delete(f"/model-uploads/{upload}").is_success


def test_another_model_of_this_name_is_a_conflict(client, folder, name, tmp_path):
    client.base_models.add(folder, name)
    with pytest.raises(Conflict, match="another base model") as error:
        client.base_models.add(write_model(tmp_path / "other", numbers=7), name)
    assert error.value.code == "model_exists"


def test_a_model_is_kept_while_a_job_needs_it(client, stack, folder, name):
    client.base_models.add(folder, name)
    pause_jobs(stack)
    try:
        job = client.train(model_name=name, dataset_version="v1.1", template="auto")
        with pytest.raises(Conflict, match=job.job_id):
            client.base_models.delete(name)
        odd = client.train(model_name=f"./{name}", dataset_version="v1.1", template="auto")
        client.cancel(job.job_id)
        with pytest.raises(Conflict, match=odd.job_id):
            client.base_models.delete(name)
        client.cancel(odd.job_id)
    finally:
        pause_jobs(stack, is_paused=False)
    client.base_models.delete(name)
    with pytest.raises(NotFound):
        client.base_models.get(name)
    assert not (stack.model_root / name).exists()


def test_a_name_without_an_organisation_is_shown_and_deleted_alike(client, stack, folder, name):
    client.base_models.add(folder, name)
    plain = name.removeprefix("up/")
    for call in (client.base_models.get, client.base_models.delete):
        with pytest.raises(NotFound, match=f"no base model '{plain}' .*; give its full name, {name}"):
            call(plain)
        with pytest.raises(NotFound, match="`tuneyard models list` lists them"):
            call(f"{plain}-other")
    assert client.base_models.get(name).name == name

    shutil.copytree(folder, stack.model_root / plain)  # as who fills the model root by hand may call it
    assert client.base_models.get(plain).name == plain
    client.base_models.delete(plain)
    assert not (stack.model_root / plain).exists()
    assert client.base_models.get(name).name == name


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": "../up"}, "invalid_request"),
        ({"name": "up"}, "invalid_request"),
        ({"files": []}, "invalid_request"),
        ({"files": [{"path": "../a.json", "bytes": 1, "sha256": "0" * 64}] * 2}, "invalid_request"),
        ({"files": [{"path": "config.json", "bytes": -1, "sha256": "0" * 64}] * 2}, "invalid_request"),
        ({"files": [{"path": "config.json", "bytes": 1, "sha256": "0"}] * 2}, "invalid_request"),
        ({"files": [{"path": "config.json", "bytes": 1, "sha256": "0" * 64}] * 2}, "invalid_upload"),
        ({"further": 1}, "invalid_request"),
    ],
)
def test_a_bad_announcement_is_refused(http, name, change, code):
    files = [{"path": path, "bytes": 9, "sha256": "0" * 64} for path in ("config.json", "model.safetensors")]
    answer = http.post("/models", json={"name": name, "files": files} | change)
    assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text


def test_pieces_that_do_not_fit_are_refused(http, stack, folder, name):
    files = read_files(folder)
    upload = announce(http, name, files).json()["upload_id"]
    for path, content, offset, status in (
        ("other.json", b"{}", 0, 404),
        ("config.json", files["config.json"] + b"!", 0, 409),
        ("config.json", files["config.json"][:-1] + b"!", 0, 409),
        ("config.json", b"{}", 3, 409),
        ("config.json", b"{}", -1, 422),
    ):
        assert put(http, upload, path, content, offset).status_code == status, (path, offset)
    assert put(http, "a" * 32, "config.json", b"{}").status_code == 404
    assert http.post(f"/model-uploads/{upload}/complete").status_code == 409
    assert http.get(f"/model-uploads/{upload}").json()["files"][0]["received_bytes"] == 0

    assert http.delete(f"/model-uploads/{upload}").status_code == 200
    assert http.get(f"/model-uploads/{upload}").json()["code"] == "upload_not_found"
    assert not (stack.model_root / UPLOADS / upload).exists()


def test_a_piece_may_be_larger_than_other_bodies(http, folder, name, stack):
    files = read_files(folder) | {"LICENSE": bytes(2 * stack.max_body_bytes)}
    upload = announce(http, name, files).json()["upload_id"]
    assert put(http, upload, "LICENSE", files["LICENSE"]).json()["complete"]
    answer = put(http, upload, "config.json", bytes(2 * stack.max_body_bytes))
    assert (answer.status_code, answer.json()["code"]) == (409, "upload_conflict")


def test_damaged_weights_are_told_at_the_end_and_leave_nothing(http, stack, folder, name):
    files = read_files(folder) | {"model-00001-of-00002.safetensors": b"short"}
    upload = announce(http, name, files).json()["upload_id"]
    for path, content in files.items():
        assert put(http, upload, path, content).json()["complete"]
    answer = http.post(f"/model-uploads/{upload}/complete")
    assert (answer.status_code, answer.json()["code"]) == (400, "model_unusable")
    assert "model-00001-of-00002.safetensors" in answer.json()["detail"]
    assert http.get(f"/models/{name}").status_code == 404
    assert not (stack.model_root / UPLOADS / upload).exists()


def test_twenty_at_once_and_the_api_goes_on_answering(url, stack, folder):
    names = [f"up/{uuid4().hex[:8]}" for _ in range(20)]
    problems = []

    def work(name):
        try:
            with Tuneyard(url) as client:
                client.base_models.add(folder, name)
        except ClientError as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    with httpx.Client(base_url=url, timeout=60) as http:
        while any(thread.is_alive() for thread in threads):
            assert http.get("/health").status_code == 200
    assert problems == []
    assert all(read_files(stack.model_root / name) == read_files(folder) for name in names)
