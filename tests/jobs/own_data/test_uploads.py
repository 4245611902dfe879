"""Files in numbered parts: never more bytes than were announced, however many parts arrive at once."""

import hashlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.errors import InvalidUpload, UploadNotFound
from jobs.own_data.file_uploads import FileUploads
from jobs.own_data.uploads import Upload, Uploads
from sft.errors import InvalidConfig


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path, 1, 1000)


def put(home: Path, upload: Upload, number: int, content: bytes) -> str | None:
    """Send a part of an upload as it was found before others sent theirs; returns what was wrong."""
    received = home / f"received-{number}-{len(content)}"
    received.write_bytes(content)
    try:
        Uploads(home, 1, 1000).put(upload, number, received, hashlib.sha256(content).hexdigest())
    except InvalidUpload as error:
        return str(error)
    return None


def sizes(uploads: Uploads, upload: Upload) -> list[tuple[int, int]]:
    return [(part.number, part.size) for part in uploads.get(upload.id).parts]


def test_parts_at_once_have_no_more_bytes_than_were_announced(uploads: Uploads, tmp_path: Path) -> None:
    upload = uploads.begin("rows.jsonl", 66)
    with ThreadPoolExecutor(15) as pool:
        told = list(pool.map(lambda number: put(tmp_path, upload, number, b"x" * 33), range(1, 16)))
    assert told.count(None) == 2
    assert {*told} - {None} == {line for line in told if line and "makes the upload larger than its 66 bytes" in line}
    assert sum(size for _, size in sizes(uploads, upload)) == 66


def test_processes_count_each_others_parts(uploads: Uploads, tmp_path: Path) -> None:
    upload = uploads.begin("rows.jsonl", 40)
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        sent = [pool.submit(put, tmp_path, upload, number, b"x" * 10) for number in range(1, 25)]
        told = [one.result() for one in sent]
    assert told.count(None) == 4
    assert len(sizes(uploads, upload)) == 4


def test_a_part_that_is_sent_again_replaces_all_that_had_its_number(uploads: Uploads, tmp_path: Path) -> None:
    upload = uploads.begin("rows.jsonl", 30)
    for content in (b"x" * 30, b"y" * 20, b"z" * 30, b"a" * 5):
        assert put(tmp_path, upload, 1, content) is None  # as found before the others
    assert sizes(uploads, upload) == [(1, 5)]
    assert put(tmp_path, upload, 2, b"b" * 25) is None
    assert uploads.join(upload, tmp_path / "whole") == hashlib.sha256(b"a" * 5 + b"b" * 25).hexdigest()


def test_parts_with_other_numbers_are_told(uploads: Uploads, tmp_path: Path) -> None:
    upload = uploads.begin("rows.jsonl", 66)
    put(tmp_path, upload, 3, b"x" * 33)
    with pytest.raises(InvalidUpload, match="part 1 is missing; send it"):
        uploads.join(upload, tmp_path / "whole")
    put(tmp_path, upload, 7, b"x" * 33)
    with pytest.raises(InvalidUpload, match="though the parts have all 66 bytes: they must be numbered from 1"):
        uploads.join(upload, tmp_path / "whole")


def test_parts_of_openai_at_once_have_a_limit_too(tmp_path: Path) -> None:
    uploads = FileUploads(tmp_path, 1, 1000)
    upload = uploads.begin("rows.jsonl", 20)

    def send(number: int) -> bool:
        content = bytes([number]) * 10
        received = tmp_path / f"received-{number}"
        received.write_bytes(content)
        try:
            uploads.put(upload, received, hashlib.sha256(content).hexdigest())
        except InvalidUpload:
            return False
        return True

    with ThreadPoolExecutor(15) as pool:
        assert sum(pool.map(send, range(15))) == 4
    assert sum(path.name.startswith("10-") for path in (uploads.folder / upload.id).iterdir()) == 4


def test_an_upload_that_is_removed_leaves_nothing_when_a_part_arrives(uploads: Uploads, tmp_path: Path) -> None:
    upload = uploads.begin("rows.jsonl", 10)
    uploads.remove(upload)
    with pytest.raises(UploadNotFound, match="was completed, deleted or has expired"):
        put(tmp_path, upload, 1, b"x")
    assert [*uploads.folder.iterdir()] == []


@pytest.mark.parametrize(
    ("filename", "name", "problem"),
    [
        ("x" * 996 + ".json", None, "filename must have a name of at most 1000 characters, it has 1001"),
        ("a\n.jsonl", "a", "filename must have a name of printable characters"),
        ("rows.zip", "rows", "filename must end in one of"),
        ("rows", "rows", "filename must end in one of"),
        (".jsonl", None, "none can be made of the file's name"),
        ("rows.jsonl", "a b", "name must be 1 to 100"),
        ("rows.jsonl", "uploads", "name must not be 'uploads'"),
        ("rows.jsonl", "rows-00000-of-00002", "name must not be that of one part of a file"),
        ("rows-00000-of-00002.jsonl", None, "none can be made of the file's name"),
    ],
)
def test_names_are_checked_when_an_upload_begins(
    uploads: Uploads, filename: str, name: str | None, problem: str
) -> None:
    with pytest.raises(InvalidConfig, match=problem):
        uploads.begin(filename, 10, name)
    assert not uploads.folder.exists()


def test_a_long_file_name_is_kept_whole(uploads: Uploads) -> None:
    filename = "x" * 900 + ".jsonl"
    assert uploads.begin(f"C:\\rows\\{filename}", 10).filename == filename
