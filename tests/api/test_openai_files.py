"""`/v1/files` with OpenAI's own client: one store with `/datasets`, and nothing left of what was refused."""

import io
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from fastapi.testclient import TestClient

from jobs.clients.keys import KeyScope
from jobs.settings import PROJECT_ROOT, Settings
from tests.api.keyed_clients import make_clients
from tests.api.openai_client import CONTENT, ROWS, ask, begin, connected, create
from tests.jobs.own_data.rows import list_files, rows
from tests.live_service import pause_jobs, wait_until_idle

pytestmark = pytest.mark.stack


@pytest.fixture
def settings(own_database: Settings) -> Settings:
    return own_database


@pytest.fixture
def client(settings: Settings) -> Iterator[openai.OpenAI]:
    with connected(settings) as client:
        yield client


# -- files


def test_a_file_is_created_listed_read_and_deleted(client: openai.OpenAI, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "support.jsonl"
    path.write_bytes(CONTENT)
    before = int(time.time())
    file = client.files.create(file=path, purpose="fine-tune")

    assert file.id.startswith("file-")
    assert (file.object, file.bytes, file.filename) == ("file", len(CONTENT), "support.jsonl")
    assert file.purpose == "fine-tune"
    assert (file.status, file.status_details, file.expires_at) == ("processed", None, None)
    assert before - 1 <= file.created_at <= time.time() + 1
    assert client.files.wait_for_processing(file.id) == client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == CONTENT
    assert [*client.files.list()] == [file]
    (dataset,) = ask(client, "GET", "/datasets").json()
    assert (dataset["reference"], dataset["rows"], dataset["commit"][:24]) == ("support@v1", 30, file.id[5:])
    assert (file.model_extra or {})["dataset"] == "support@v1"

    assert client.files.delete(file.id).model_dump() == {"id": file.id, "deleted": True, "object": "file"}
    for call in (client.files.delete, client.files.retrieve, client.files.content):
        with pytest.raises(openai.NotFoundError):
            call(file.id)
    assert [*client.files.list()] == []
    assert ask(client, "GET", "/datasets").json() == []
    assert list_files(settings.home) == set()


def test_the_same_file_sent_again_is_the_same_and_a_new_one_after_it_was_deleted(client: openai.OpenAI) -> None:
    first = create(client)
    assert create(client) == first
    client.files.delete(first.id)
    assert create(client).id != first.id


def test_a_request_that_is_repeated_after_its_file_was_deleted_does_not_have_that_file(client: openai.OpenAI) -> None:
    once = {"Idempotency-Key": "the same"}
    first = client.files.create(file=("rows.jsonl", CONTENT), purpose="fine-tune", extra_headers=once)
    client.files.delete(first.id)
    again = client.files.create(file=("rows.jsonl", CONTENT), purpose="fine-tune", extra_headers=once)
    assert again.id != first.id
    assert [*client.files.list()] == [again]
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(first.id)


def test_a_file_with_the_name_of_one_part_of_several_is_taken_as_it_is(client: openai.OpenAI) -> None:
    file = create(client, CONTENT, "rows-00000-of-00002.jsonl")
    assert (file.status, file.filename) == ("processed", "rows-00000-of-00002.jsonl")
    assert (file.model_extra or {})["dataset"] == "rows-00000-of-00002-file@v1"
    shown = ask(client, "GET", "/datasets/rows-00000-of-00002-file/rows")
    assert (shown.status_code, len(shown.json()["rows"])) == (200, 3)
    refused = ask(client, "POST", "/datasets", files={"file": ("rows-00000-of-00002.jsonl", CONTENT)})
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_config")
    assert "none can be made of the file's name" in refused.json()["detail"]


@pytest.mark.parametrize("end", [".jsonl", " 2024.jsonl"])
def test_files_with_names_in_another_script_are_datasets_of_their_own(client: openai.OpenAI, end: str) -> None:
    russian = create(client, CONTENT, f"данные{end}")
    chinese = create(client, CONTENT, f"数据{end}")
    assert (russian.filename, chinese.filename) == (f"данные{end}", f"数据{end}")
    assert russian.id != chinese.id
    assert (russian.model_extra or {})["dataset"].endswith("@v1")
    later = create(client, rows("a later version"), f"данные{end}")
    assert (later.model_extra or {})["dataset"] == (russian.model_extra or {})["dataset"].replace("@v1", "@v2")


def test_versions_of_datasets_are_files_in_pages_of_either_order(client: openai.OpenAI) -> None:
    for text in "abc":
        added = ask(client, "POST", "/datasets", files={"file": ("support.jsonl", rows(text))})
        assert added.status_code == 200
    create(client)
    newest = [*client.files.list()]
    datasets = [(file.model_extra or {})["dataset"] for file in newest]
    assert datasets == ["rows@v1", "support@v3", "support@v2", "support@v1"]
    assert client.files.content(newest[1].id).read() == rows("c")

    assert [*client.files.list(limit=1)] == newest  # page after page
    assert [*client.files.list(limit=3, order="asc")] == newest[::-1]
    page = client.files.list(limit=2, after=newest[0].id)
    assert (page.data, page.has_more) == (newest[1:3], True)
    assert page.model_extra == {"object": "list", "first_id": newest[1].id, "last_id": newest[2].id}
    assert client.files.list(purpose="fine-tune").data == newest
    assert client.files.list(purpose="batch").data == []
    for values in ({"after": "file-x"}, {"limit": 0}, {"limit": 10_001}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.files.list(**values)  # type: ignore[arg-type]
        assert next(iter(values)) in caught.value.message


def test_a_file_whose_rows_can_not_be_read_has_an_error_that_says_why(
    client: openai.OpenAI, settings: Settings
) -> None:
    broken = create(client, b'{"messages": \n', "broken.jsonl")
    assert broken.status == "error"
    assert "line 1" in str(broken.status_details) or "row 1" in str(broken.status_details)
    assert client.files.wait_for_processing(broken.id) == broken == create(client, b'{"messages": \n', "broken.jsonl")
    assert [*client.files.list()] == [broken]
    with pytest.raises(openai.BadRequestError, match="was not kept"):
        client.files.content(broken.id)
    refused = ask(client, "POST", "/train", json={"model_name": "m", "dataset_version": broken.id})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_dataset")
    assert client.files.delete(broken.id).deleted
    assert list_files(settings.home) == set()


def test_rows_that_are_left_out_and_files_without_any_row_of_a_format_are_told(client: openai.OpenAI) -> None:
    half = create(client, rows("a") + b"[1]\n", "half.jsonl")
    assert half.status == "processed"
    assert half.status_details == "1 of 2 rows can't be used and are left out; row 2: must be an object, got [1]"
    mistaken = create(client, b'{"message": [{"role": "user", "content": "a"}]}\n', "mistaken.jsonl")
    assert mistaken.status == "error"
    assert str(mistaken.status_details).startswith("no row is in a format that is known")
    assert (mistaken.model_extra or {})["dataset"] == "mistaken@v1"


def test_a_file_without_a_name_of_a_data_file_has_json_lines(client: openai.OpenAI) -> None:
    assert client.files.create(file=CONTENT, purpose="fine-tune").status == "processed"
    assert client.files.create(file=io.BytesIO(rows("b")), purpose="fine-tune").status == "processed"
    table = client.files.create(file=("rows.csv", b"prompt,completion\na,b\n"), purpose="fine-tune")
    assert table.status == "processed"
    picture = client.files.create(file=("a.png", b"\x89PNG\r\n\x1a\n\x00"), purpose="fine-tune")
    assert picture.status == "error"


@pytest.mark.parametrize(
    ("fields", "problem", "param"),
    [
        ({}, "purpose: must be 'fine-tune'", "purpose"),
        ({"purpose": "assistants"}, "got 'assistants'", "purpose"),
        ({"purpose": "fine-tune", "expires_after[seconds]": "3600"}, "'expires_after[seconds]' is not a field", None),
    ],
)
def test_a_form_that_asks_for_something_else_is_refused(
    client: openai.OpenAI, settings: Settings, fields: dict[str, str], problem: str, param: str | None
) -> None:
    refused = ask(client, "POST", "/v1/files", files={"file": ("a.jsonl", CONTENT)}, data=fields)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert problem in error["message"]
    assert "got None" not in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert list_files(settings.home) == set()


FORM = "multipart/form-data; boundary=b"
PURPOSE = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{}", "application/json"),
        (b"", FORM),
        (b"nonsense", FORM),
        (PURPOSE + b"--b--\r\n", FORM),
        (PURPOSE + b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{', FORM),
        (PURPOSE + b'--b\r\nContent-Disposition: form-data; name="file"; filename="\n"\r\n\r\n{\r\n--b--\r\n', FORM),
    ],
)
def test_a_broken_form_is_refused_and_leaves_nothing(
    client: openai.OpenAI, settings: Settings, body: bytes, kind: str
) -> None:
    refused = ask(client, "POST", "/v1/files", content=body, headers={"Content-Type": kind})
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
    assert list_files(settings.home) == set()


@pytest.mark.parametrize("file_id", ["x", "file-", f"file-{'0' * 24}", "..%2Fregistry", "file-%00", "é" * 300])
def test_no_other_file_is_reached(client: openai.OpenAI, file_id: str) -> None:
    create(client)
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/content"), ("HEAD", "/content")):
        assert ask(client, method, f"/v1/files/{file_id}{path}").status_code in (400, 404), (method, path)


def test_limits_and_a_full_disk_are_told_and_nothing_is_left(settings: Settings, small_disk: Path) -> None:
    with connected(settings.model_copy(update={"max_upload_bytes": 1000})) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            create(client, rows("x" * 70_000))
        assert (caught.value.status_code, "TUNEYARD_MAX_UPLOAD_BYTES" in caught.value.message) == (413, True)
        with pytest.raises(openai.APIStatusError) as caught:
            begin(client, 1001)
        assert (caught.value.status_code, "TUNEYARD_MAX_UPLOAD_BYTES" in caught.value.message) == (413, True)
    assert list_files(settings.home) == set()
    small_disk.chmod(0o700)
    with connected(settings.model_copy(update={"home": small_disk})) as client:
        for call in (lambda: create(client), lambda: begin(client)):
            with pytest.raises(openai.InternalServerError) as full:
                call()
            assert (full.value.status_code, full.value.code) == (507, "disk_full")
    assert list_files(small_disk) == set()


def test_ten_at_once_are_all_taken(client: openai.OpenAI, settings: Settings) -> None:
    with ThreadPoolExecutor(10) as pool:
        files = list(pool.map(lambda number: create(client, rows(str(number)), f"{number}.jsonl"), range(10)))
    assert len({file.id for file in files}) == 10
    assert {file.id for file in client.files.list()} == {file.id for file in files}
    assert len(list_files(settings.home)) == 10


# -- jobs


@pytest.fixture
def paused(stack: Settings) -> Iterator[None]:
    """Nothing starts in the stack's pool."""
    pause_jobs(stack)
    wait_until_idle(stack)
    yield
    pause_jobs(stack, False)


def test_jobs_name_files_by_their_ids_which_are_not_deleted_meanwhile(client: openai.OpenAI, paused: None) -> None:
    file, other = create(client), create(client, rows("b"), "other.jsonl")
    train = {"model_name": "nobody/nothing", "dataset_version": file.id, "validation_dataset": other.id}
    config = {"base_model": "m", "dataset_name": [file.id, "handbook@v1.0"], "dataset_format": "auto"}
    job = ask(client, "POST", "/train", json=train).json()["job_id"]
    second = ask(client, "POST", "/api/sft/train", json={"config": config}).json()["job_id"]
    try:
        shown = ask(client, "GET", f"/train/{job}").json()["config"]
        assert (shown["dataset_version"], shown["validation_dataset"]) == ("rows@v1", "other@v1")
        sources = ask(client, "GET", f"/api/sft/jobs/{second}").json()["config"]["dataset_name"]
        assert [source["name"] for source in sources] == ["rows@v1", "handbook@v1.0"]
        for needed in (file, other):
            with pytest.raises(openai.BadRequestError, match="is needed by job"):
                client.files.delete(needed.id)
    finally:
        for job_id in (job, second):
            ask(client, "DELETE", f"/train/{job_id}")
    assert client.files.delete(file.id).deleted
    for path in ("/train", "/train/plan"):
        refused = ask(client, "POST", path, json=train)
        assert (refused.status_code, refused.json()["code"]) == (404, "dataset_not_found")
        assert file.id in refused.json()["detail"]


def test_a_file_is_named_on_the_command_line(client: openai.OpenAI, paused: None) -> None:
    file = create(client)
    url = str(client.base_url).removesuffix("/v1/")
    command = [sys.executable, "-m", "tuneyard_cli", "submit", "--url", url, "--model", "nobody/nothing", "--no-strict"]
    done = subprocess.run(
        [*command, "--dataset", file.id], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    assert ask(client, "GET", f"/train/{job}").json()["config"]["dataset_version"] == "rows@v1"
    ask(client, "DELETE", f"/train/{job}")


# -- keys


def test_a_key_sees_its_own_files_and_uploads(settings: Settings) -> None:
    mine, theirs, reader, admin = make_clients(
        settings, mine=KeyScope.SUBMIT, theirs=KeyScope.SUBMIT, reader=KeyScope.READ, admin=KeyScope.ADMIN
    )

    def post(client: TestClient, content: bytes) -> httpx.Response:
        return client.post("/v1/files", files={"file": ("train.jsonl", content)}, data={"purpose": "fine-tune"})

    file, broken = post(mine, CONTENT).json(), post(mine, b"no rows").json()
    assert post(theirs, CONTENT).json()["id"] not in (file["id"], broken["id"])  # of the same name
    assert post(reader, CONTENT).status_code == 403
    of_admin = post(admin, rows("z")).json()
    assert [len(one.get("/v1/files").json()["data"]) for one in (mine, theirs, reader, admin)] == [2, 1, 4, 4]
    assert mine.get(f"/v1/files/{of_admin['id']}").status_code == 404
    for one in (file, broken):
        for path in ("", "/content"):
            assert theirs.get(f"/v1/files/{one['id']}{path}").status_code == 404
        assert theirs.delete(f"/v1/files/{one['id']}").status_code == 404
        assert reader.delete(f"/v1/files/{one['id']}").status_code == 403
    refused = theirs.post("/train", json={"model_name": "m", "dataset_version": file["id"]})
    assert (refused.status_code, refused.json()["code"]) == (404, "dataset_not_found")

    upload = mine.post("/v1/uploads", json={"bytes": 1, **ROWS}).json()["id"]
    assert theirs.post(f"/v1/uploads/{upload}/cancel").status_code == 404
    assert theirs.post(f"/v1/uploads/{upload}/parts", files={"data": ("a", b"x")}).status_code == 404
    assert theirs.post(f"/v1/uploads/{upload}/complete", json={"part_ids": ["x"]}).status_code == 404
    assert admin.post(f"/v1/uploads/{upload}/cancel").json()["status"] == "cancelled"
    assert admin.delete(f"/v1/files/{broken['id']}").json()["deleted"]
