"""`/datasets/uploads`: a file in parts, gone on with after what went wrong, and nothing left of what is given up."""

import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from jobs.clients.keys import KeyScope
from tests.api.keyed_clients import make_clients
from tests.jobs.own_data.rows import list_files, rows

pytestmark = pytest.mark.stack
CONTENT = rows(*(f"answer {number}" for number in range(30)))
PARTS = CONTENT[:500], CONTENT[500:501], CONTENT[501:]


@pytest.fixture
def settings(own_database):
    return own_database


@pytest.fixture
def client(settings):
    with TestClient(create_app(settings)) as client:
        yield client


def begin(client, **fields):
    values = {"filename": "support.jsonl", "bytes": len(CONTENT)} | fields
    return client.post("/datasets/uploads", json=values)


def test_parts_in_any_order_and_sent_twice_are_joined_in_the_order_of_their_numbers(client, settings):
    upload = begin(client, sha256=hashlib.sha256(CONTENT).hexdigest()).json()
    place = f"/datasets/uploads/{upload['upload_id']}"
    client.put(f"{place}/parts/3", content=b"first try")
    for number in (3, 1, 2):
        part = PARTS[number - 1]
        digest = hashlib.sha256(part).hexdigest()
        answer = client.put(f"{place}/parts/{number}", params={"sha256": digest}, content=part)
        assert answer.json() == {"number": number, "bytes": len(part), "sha256": digest}
    assert [part["number"] for part in client.get(place).json()["parts"]] == [1, 2, 3]

    added = client.post(f"{place}/complete").json()
    assert (added["reference"], added["rows"], added["is_new"]) == ("support@v1", 30, True)
    assert client.get("/datasets/support/content").content == CONTENT
    assert client.get(place).status_code == 404
    assert len(list_files(settings.home)) == 1


def test_twenty_parts_at_once_are_one_file(client):
    size = -(-len(CONTENT) // 20)
    pieces = [CONTENT[start : start + size] for start in range(0, len(CONTENT), size)]
    place = f"/datasets/uploads/{begin(client).json()['upload_id']}"
    with ThreadPoolExecutor(20) as pool:
        numbered = enumerate(pieces, 1)
        answers = list(pool.map(lambda one: client.put(f"{place}/parts/{one[0]}", content=one[1]), numbered))
    assert {answer.status_code for answer in answers} == {200}
    client.post(f"{place}/complete")
    assert client.get("/datasets/support/content").content == CONTENT


def test_what_is_missing_or_wrong_is_told_and_the_upload_can_be_gone_on_with(client, settings):
    place = f"/datasets/uploads/{begin(client).json()['upload_id']}"
    refused = [
        client.put(f"{place}/parts/1", params={"sha256": "0" * 64}, content=PARTS[0]),
        client.put(f"{place}/parts/1", content=b""),
        client.put(f"{place}/parts/1", content=CONTENT + b"x"),
    ]
    client.put(f"{place}/parts/1", content=PARTS[0])
    refused.append(client.post(f"{place}/complete"))
    client.put(f"{place}/parts/3", content=PARTS[2])
    refused.append(client.post(f"{place}/complete"))
    assert {(one.status_code, one.json()["code"]) for one in refused} == {(422, "invalid_upload")}
    told = [one.json()["detail"] for one in refused]
    words = [f"have 500 bytes of {len(CONTENT)}", "part 2 is missing"]
    words = ["has the SHA-256", "is empty", "larger than the upload", *words]
    assert all(word in detail for word, detail in zip(words, told, strict=True))

    client.put(f"{place}/parts/2", content=PARTS[1])
    assert client.post(f"{place}/complete").status_code == 200
    assert len(list_files(settings.home)) == 1


def test_a_file_that_is_refused_or_given_up_leaves_nothing_once_it_is_deleted(client, settings):
    upload = begin(client, bytes=9).json()
    place = f"/datasets/uploads/{upload['upload_id']}"
    client.put(f"{place}/parts/1", content=b"not rows!")
    refused = client.post(f"{place}/complete")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_dataset")
    assert client.delete(place).json() == {"message": f"Upload {upload['upload_id']} deleted"}
    assert client.put(f"{place}/parts/1", content=b"x").json()["code"] == "upload_not_found"
    assert list_files(settings.home) == set()


def test_an_upload_expires(settings):
    brief = settings.model_copy(update={"keep_uploads_hours": 1 / 3600})
    with TestClient(create_app(brief)) as client:
        place = f"/datasets/uploads/{begin(client).json()['upload_id']}"
        client.put(f"{place}/parts/1", content=PARTS[0])
        time.sleep(1.1)
        assert client.get(place).status_code == 404
        begin(client, bytes=1)
    assert {path.rpartition("/")[2] for path in list_files(settings.home)} == {"upload.json"}


@pytest.mark.parametrize(
    ("fields", "status", "problem"),
    [
        ({"bytes": 10**13}, 413, "TUNEYARD_MAX_UPLOAD_BYTES"),
        ({"bytes": 0}, 422, "bytes"),
        ({"bytes": "5"}, 422, "bytes"),
        ({"filename": "rows.zip"}, 422, "must end in one of"),
        ({"filename": "x" * 996 + ".json"}, 422, "filename: must have at most 1000 characters"),
        ({"name": "../x"}, 422, "name must be"),
        ({"name": "x-00000-of-00002"}, 422, "name must not be that of one part of a file"),
        ({"sha256": "x"}, 422, "sha256"),
        ({"size": 5}, 422, "size"),
    ],
)
def test_what_can_not_be_added_is_refused_before_a_part_is_sent(client, settings, fields, status, problem):
    refused = begin(client, **fields)
    assert refused.status_code == status
    assert problem in refused.json()["detail"]
    assert list_files(settings.home) == set()


def test_a_name_that_is_taken_is_told_before_a_part_is_sent(client, settings):
    settings.data_root.mkdir(parents=True)
    (settings.data_root / "mine").mkdir()
    for name, problem in (("mine", "is a file or folder in the data root"), ("handbook", "in the registry")):
        refused = begin(client, name=name)
        assert (refused.status_code, refused.json()["code"]) == (409, "name_taken")
        assert problem in refused.json()["detail"]
    assert begin(client, filename="handbook.jsonl").status_code == 409
    assert list_files(settings.home) == set()


def test_a_name_of_another_key_is_told_before_a_part_is_sent(settings):
    mine, theirs, admin = make_clients(settings, mine=KeyScope.SUBMIT, theirs=KeyScope.SUBMIT, admin=KeyScope.ADMIN)
    assert mine.post("/datasets", files={"file": ("support.jsonl", CONTENT)}).status_code == 200
    assert [begin(client).status_code for client in (mine, theirs, admin)] == [200, 409, 200]


def test_a_part_that_is_larger_than_the_upload_is_refused(client):
    place = f"/datasets/uploads/{begin(client, bytes=66).json()['upload_id']}"

    def parts():
        for _ in range(100):
            yield b"x" * 33

    refused = client.put(f"{place}/parts/1", content=parts())
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_upload")
    assert "part 1 is larger than the upload, which has 66 bytes" in refused.json()["detail"]
    assert client.get(place).json()["parts"] == []


def test_a_disk_without_space_for_the_file_is_told_at_the_beginning(settings, small_disk):
    small_disk.chmod(0o700)
    with TestClient(create_app(settings.model_copy(update={"home": small_disk}))) as client:
        refused = begin(client, bytes=10**6)
    assert (refused.status_code, refused.json()["code"]) == (507, "disk_full")
    assert list_files(small_disk) == set()


@pytest.mark.parametrize("upload_id", ["0" * 32, "x", "%2e%2e%2fregistry", "a" * 500])
def test_no_other_upload_and_no_other_folder_is_reached(client, upload_id):
    for method, path in (("GET", ""), ("DELETE", ""), ("PUT", "/parts/1"), ("POST", "/complete")):
        assert client.request(method, f"/datasets/uploads/{upload_id}{path}").status_code in (404, 405)


def test_a_key_sees_its_own_uploads(settings):
    mine, theirs = make_clients(settings, mine=KeyScope.SUBMIT, theirs=KeyScope.SUBMIT)
    place = f"/datasets/uploads/{json.loads(begin(mine).content)['upload_id']}"
    assert (mine.get(place).status_code, theirs.get(place).status_code) == (200, 404)
    assert theirs.put(f"{place}/parts/1", content=b"x").status_code == 404
    assert theirs.delete(place).status_code == 404
