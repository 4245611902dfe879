"""`/v1/uploads` with OpenAI's own client: parts in any order, ends that are told once, and nothing left."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from jobs.settings import Settings
from tests.api.openai_client import CONTENT, MD5, PART_SIZE, ROWS, ask, begin, connected, send
from tests.jobs.own_data.rows import list_files

pytestmark = pytest.mark.stack


@pytest.fixture
def settings(own_database: Settings) -> Settings:
    return own_database


@pytest.fixture
def client(settings: Settings) -> Iterator[openai.OpenAI]:
    with connected(settings) as client:
        yield client


def test_a_file_in_parts_by_the_function_of_the_client(client: openai.OpenAI, settings: Settings) -> None:
    upload = client.uploads.upload_file_chunked(
        file=CONTENT, filename="support.jsonl", bytes=len(CONTENT), mime_type="application/jsonl", purpose="fine-tune",
        part_size=PART_SIZE, md5=MD5,
    )  # fmt: skip
    assert (upload.object, upload.status, upload.bytes, upload.filename) == (
        "upload", "completed", len(CONTENT), "support.jsonl",
    )  # fmt: skip
    assert upload.id.startswith("upload_")
    assert upload.created_at < upload.expires_at
    assert upload.file is not None
    assert client.files.retrieve(upload.file.id) == upload.file
    assert client.files.content(upload.file.id).read() == CONTENT
    assert len([path for path in list_files(settings.home) if not path.startswith("file-uploads/")]) == 1


def test_parts_of_two_clients_at_once_in_another_order_and_sent_twice(client: openai.OpenAI) -> None:
    upload = begin(client)
    pieces = [CONTENT[start : start + PART_SIZE] for start in range(0, len(CONTENT), PART_SIZE)]
    with ThreadPoolExecutor(8) as pool:
        parts = [*pool.map(lambda piece: client.uploads.parts.create(upload.id, data=piece), [*pieces, *pieces])][::-1]
    assert {(part.object, part.upload_id) for part in parts} == {("upload.part", upload.id)}
    assert len({part.id for part in parts}) == len(pieces)
    done = client.uploads.complete(upload.id, part_ids=[part.id for part in parts[: len(pieces)]][::-1], md5=MD5)
    assert done.file is not None
    assert client.files.content(done.file.id).read() == CONTENT


def test_completing_twice_is_one_file_and_nothing_else_follows(client: openai.OpenAI, settings: Settings) -> None:
    upload = begin(client)
    part_ids = send(client, upload)
    with ThreadPoolExecutor(4) as pool:
        done = [*pool.map(lambda _: client.uploads.complete(upload.id, part_ids=part_ids, md5=MD5), range(4))]
    assert all(one == done[0] for one in done)
    assert client.uploads.complete(upload.id, part_ids=part_ids) == done[0]
    assert len([*client.files.list()]) == 1
    for call in (
        lambda: client.uploads.complete(upload.id, part_ids=part_ids[::-1]),
        lambda: client.uploads.cancel(upload.id),
        lambda: client.uploads.parts.create(upload.id, data=b"x"),
    ):
        with pytest.raises(openai.BadRequestError, match="is completed"):
            call()
    assert done[0].file is not None
    client.files.delete(done[0].file.id)
    assert client.uploads.complete(upload.id, part_ids=part_ids).file is None
    assert {path.rpartition("/")[2] for path in list_files(settings.home)} == {"upload.json", "lock", "parts.lock"}


def test_cancelling_twice_is_one_end_and_keeps_no_parts(client: openai.OpenAI, settings: Settings) -> None:
    upload = begin(client)
    part_ids = send(client, upload)
    cancelled = client.uploads.cancel(upload.id)
    assert (cancelled.status, cancelled.file) == ("cancelled", None)
    assert client.uploads.cancel(upload.id) == cancelled
    for call in (
        lambda: client.uploads.complete(upload.id, part_ids=part_ids),
        lambda: client.uploads.parts.create(upload.id, data=b"x"),
    ):
        with pytest.raises(openai.BadRequestError, match="is cancelled"):
            call()
    assert {path.rpartition("/")[2] for path in list_files(settings.home)} == {"upload.json", "lock", "parts.lock"}
    assert [*client.files.list()] == []


def test_what_is_wrong_is_told_and_the_upload_can_be_completed_then(client: openai.OpenAI) -> None:
    upload, other = begin(client), begin(client)
    part_ids = send(client, upload)
    (foreign,) = send(client, other, b"x")
    for wrong, md5, problem in (
        (part_ids[:-1], MD5, "bytes and the upload"),
        ([*part_ids[:-1], foreign], MD5, "is not a part of this upload"),
        (part_ids[1:] + part_ids[:1], MD5, "md5: the parts have"),
        (part_ids, "0" * 32, f"md5: the parts have {MD5}"),
        (part_ids, "xyz", "md5"),
        ([], MD5, "part_ids"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            client.uploads.complete(upload.id, part_ids=wrong, md5=md5)
        assert problem in caught.value.message
    for data, status in ((b"", 400), (b"x" * (len(CONTENT) + 1), 400)):
        with pytest.raises(openai.APIStatusError) as refused:
            client.uploads.parts.create(upload.id, data=data)
        assert refused.value.status_code == status
    assert client.uploads.complete(upload.id, part_ids=part_ids, md5=MD5.upper()).status == "completed"


def test_a_part_has_at_most_64_mib(client: openai.OpenAI, settings: Settings) -> None:
    upload = begin(client, 2**27)
    with pytest.raises((openai.APIStatusError, openai.APIConnectionError)) as refused:
        client.uploads.parts.create(upload.id, data=bytes(2**26 + 1))
    if isinstance(refused.value, openai.APIStatusError):  # else it was still being sent
        assert (refused.value.status_code, refused.value.code) == (413, "upload_too_large")
    assert client.uploads.parts.create(upload.id, data=bytes(2**26)).id
    client.uploads.cancel(upload.id)
    assert {path.rpartition("/")[2] for path in list_files(settings.home)} == {"upload.json", "lock", "parts.lock"}


def test_an_upload_whose_rows_can_not_be_read_is_completed_with_an_error(client: openai.OpenAI) -> None:
    upload = begin(client, 9)
    done = client.uploads.complete(upload.id, part_ids=send(client, upload, b"not rows!"))
    assert done.status == "completed"
    assert done.file is not None
    assert (done.file.status, bool(done.file.status_details)) == ("error", True)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"bytes": 0}, "bytes"),
        ({"bytes": "5"}, "bytes"),
        ({"purpose": "batch"}, "purpose"),
        ({"filename": ""}, "filename"),
        ({"filename": "a\u202e.jsonl"}, "filename"),
        ({"mime_type": None}, "mime_type"),
        ({"expires_after": {"anchor": "created_at", "seconds": 3600}}, "expires_after"),
    ],
)
def test_an_upload_that_can_not_be_is_refused_before_a_part_is_sent(
    client: openai.OpenAI, settings: Settings, fields: dict[str, object], param: str
) -> None:
    refused = ask(client, "POST", "/v1/uploads", json={"bytes": 5, **ROWS, **fields})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert list_files(settings.home) == set()


def test_an_upload_expires(settings: Settings) -> None:
    with connected(settings.model_copy(update={"keep_uploads_hours": 1 / 3600})) as client:
        upload = begin(client)
        assert upload.expires_at - upload.created_at in (1, 2)
        time.sleep(1.1)
        with pytest.raises(openai.BadRequestError, match="is expired"):
            client.uploads.parts.create(upload.id, data=b"x")
        with pytest.raises(openai.BadRequestError, match="is expired"):
            client.uploads.cancel(upload.id)


@pytest.mark.parametrize("upload_id", ["x", f"upload_{'0' * 32}", "..%2Fregistry", "é" * 300])
def test_no_other_upload_is_reached(client: openai.OpenAI, upload_id: str) -> None:
    for action, values in (
        ("cancel", {}),
        ("complete", {"json": {"part_ids": ["x"]}}),
        ("parts", {"files": {"data": ("a", b"x")}}),
    ):
        refused = ask(client, "POST", f"/v1/uploads/{upload_id}/{action}", **values)
        assert refused.status_code == 404, action
