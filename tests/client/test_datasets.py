"""What the clients send and write of datasets that users add."""

import hashlib
import json

import pytest

from tests.client.scripted_service import Scripted
from tuneyard_client.errors import ChecksumMismatch, ClientError, Conflict, InvalidRequest
from tuneyard_wire.own_data import AddedDataset, Dataset, DatasetVersion, ShownRows, Upload

ADDED = Scripted(body=json.dumps(AddedDataset.example()))
CONTENT = b'{"instruction": "a", "output": "b"}\n'


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(CONTENT)
    return path


def test_a_file_is_sent_as_a_form_and_again_after_a_busy_answer(service, call, file):
    busy = Scripted(503, json.dumps({"detail": "busy", "code": "busy", "request_id": "r"}), {"Retry-After": "0"})
    server = service(busy, ADDED)
    added = call(server.url, "datasets.add", file, "support")

    assert (added.reference, added.is_new, added.bad_rows[0].row) == ("support@v2", True, 17)
    assert [(one.method, one.path) for one in server.received] == [("POST", "/datasets")] * 2
    for one in server.received:
        assert 'name="file"; filename="data.jsonl"' in one.body
        assert CONTENT.decode() in one.body
        assert 'name="name"\r\n\r\nsupport\r\n' in one.body


def test_a_file_that_can_not_be_read_is_named(service, call, tmp_path):
    with pytest.raises(ClientError, match=r"missing.jsonl can't be read"):
        call(service(ADDED).url, "datasets.add", tmp_path / "missing.jsonl")


def test_lists_are_read_page_by_page(service, call):
    version = DatasetVersion.example()
    first = Scripted(body=json.dumps([version]), headers={"X-Next-Cursor": "c"})
    server = service(first, Scripted(body=json.dumps([version | {"name": "other"}])))

    assert [one.name for one in call(server.url, "datasets.list")] == ["support", "other"]
    assert [one.path for one in server.received] == ["/datasets?limit=200", "/datasets?limit=200&cursor=c"]


@pytest.mark.parametrize("operation", ["datasets.get", "datasets.delete"])
def test_a_name_with_a_slash_is_none_and_asks_for_nothing_else(service, call, operation):
    server = service()
    with pytest.raises(InvalidRequest, match="'support/rows' is not the name of a dataset"):
        call(server.url, operation, "support/rows")
    assert server.received == []


def test_a_dataset_its_rows_and_its_deletion_are_asked_for_by_its_name(service, call):
    server = service(
        Scripted(body=json.dumps(Dataset.example())),
        Scripted(body=json.dumps(ShownRows.example())),
        Scripted(body=json.dumps({"deleted": ["support@v2"]})),
        Scripted(409, json.dumps({"detail": "needed", "code": "dataset_in_use", "request_id": "r"})),
    )
    assert call(server.url, "datasets.get", "support").versions[0].version == "v2"
    assert call(server.url, "datasets.rows", "support@v2", 1, "m").rows[0].rendered[1].supervised
    assert call(server.url, "datasets.delete", "support@v2") == ["support@v2"]
    with pytest.raises(Conflict):
        call(server.url, "datasets.delete", "support")
    assert [(one.method, one.path) for one in server.received] == [
        ("GET", "/datasets/support"),
        ("GET", "/datasets/support%40v2/rows?limit=1&model=m"),
        ("DELETE", "/datasets/support%40v2"),
        ("DELETE", "/datasets/support"),
    ]


def test_a_download_is_there_whole_or_not_at_all(service, call, tmp_path):
    digest = hashlib.sha256(CONTENT).hexdigest()
    whole = Scripted(body=CONTENT, headers={"X-Checksum-SHA256": digest})
    target = tmp_path / "copy.jsonl"

    with pytest.raises(ChecksumMismatch):
        call(service(Scripted(body=b"x", headers={"X-Checksum-SHA256": digest})).url, "datasets.download", "a", target)
    assert [*tmp_path.iterdir()] == []
    assert call(service(whole).url, "datasets.download", "a", target) == target
    assert target.read_bytes() == CONTENT
    with pytest.raises(ClientError, match="exists; choose another name"):
        call(service(whole).url, "datasets.download", "a", target)
    assert [*tmp_path.iterdir()] == [target]


def test_a_large_file_is_sent_in_parts_each_again_after_a_lost_connection(service, call, tmp_path, monkeypatch):
    monkeypatch.setattr("tuneyard_client.datasets.WHOLE_BYTES", 5)
    monkeypatch.setattr("tuneyard_client.datasets.PART_BYTES", 4)
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"abcdefghij")
    begun = Scripted(body=json.dumps(Upload.example() | {"upload_id": "7", "parts": []}))
    part = Scripted(body=json.dumps(Upload.example()["parts"][0]))
    lost = Scripted(body="{", cut_after=0)
    server = service(begun, part, lost, part, part, ADDED)

    assert call(server.url, "datasets.add", path, "support").reference == "support@v2"
    assert json.loads(server.received[0].body) == {"filename": "data.jsonl", "bytes": 10, "name": "support"}
    sent = [(one.method, one.path.partition("?")[0], one.body) for one in server.received[1:]]
    assert sent == [
        ("PUT", "/datasets/uploads/7/parts/1", "abcd"),
        ("PUT", "/datasets/uploads/7/parts/2", "efgh"),
        ("PUT", "/datasets/uploads/7/parts/2", "efgh"),
        ("PUT", "/datasets/uploads/7/parts/3", "ij"),
        ("POST", "/datasets/uploads/7/complete", ""),
    ]
    assert server.received[1].path.endswith(f"?sha256={hashlib.sha256(b'abcd').hexdigest()}")
