"""OpenAI's uploads: parts named by their content, an order told last, and an end that is told once."""

import hashlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.errors import InvalidUpload, UploadNotFound, UploadTooLarge
from jobs.own_data.file_uploads import CANCELLED, COMPLETED, EXPIRED, FileUpload, FileUploads
from jobs.own_data.unreadable import MOST_KEPT, UnreadableFiles
from jobs.own_data.uploads import MAX_OPEN


@pytest.fixture
def uploads(tmp_path: Path) -> FileUploads:
    return FileUploads(tmp_path, 1, 1000)


def put(uploads: FileUploads, upload: FileUpload, content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()
    received = uploads.folder / f"received-{threading.get_ident()}"
    received.write_bytes(content)
    return uploads.put(upload, received, digest)


def join(uploads: FileUploads, upload: FileUpload, part_ids: list[str], md5: str | None = None) -> bytes:
    target = uploads.folder / "whole"
    try:
        digest = uploads.join(upload, part_ids, md5, target)
        content = target.read_bytes()
    finally:
        target.unlink(missing_ok=True)
    assert digest == hashlib.sha256(content).hexdigest()
    return content


def list_parts(uploads: FileUploads, upload: FileUpload) -> list[Path]:
    return [path for path in (uploads.folder / upload.id).iterdir() if path.name[0].isdecimal()]


def test_parts_are_joined_in_the_order_that_is_told_and_one_may_come_twice(uploads: FileUploads) -> None:
    upload = uploads.begin("rows.jsonl", 9)
    first, second = put(uploads, upload, b"abc"), put(uploads, upload, b"def")
    assert put(uploads, upload, b"abc") == first  # sent again after a lost connection
    assert join(uploads, upload, [second, first, second]) == b"defabcdef"
    assert join(uploads, upload, [first, first, second], hashlib.md5(b"abcabcdef").hexdigest().upper())  # noqa: S324


def test_parts_that_come_at_once_are_all_taken(uploads: FileUploads) -> None:
    upload = uploads.begin("rows.jsonl", 20)
    with ThreadPoolExecutor(20) as pool:
        ids = list(pool.map(lambda number: put(uploads, upload, b"%c" % (65 + number)), range(20)))
    assert join(uploads, upload, ids) == b"ABCDEFGHIJKLMNOPQRST"


def test_what_is_wrong_is_told_and_the_upload_stays(uploads: FileUploads) -> None:
    upload, other = uploads.begin("rows.jsonl", 6), uploads.begin("rows.jsonl", 6)
    part, foreign = put(uploads, upload, b"abc"), put(uploads, other, b"abc")
    for part_ids, md5, problem in (
        ([part], None, "the parts have 3 bytes and the upload 6"),
        ([part, foreign], None, r"part_ids\[1\] .* is not a part of this upload"),
        ([part, "../../upload.json"], None, r"part_ids\[1\]"),
        ([part, part], "0" * 32, "md5: the parts have"),
    ):
        with pytest.raises(InvalidUpload, match=problem):
            join(uploads, upload, part_ids, md5)
    for content, problem in ((b"1234567", "the part has 7 bytes"), (b"", "")):
        if problem:
            with pytest.raises(InvalidUpload, match=problem):
                put(uploads, upload, content)
    put(uploads, upload, b"123456")
    with pytest.raises(InvalidUpload, match="too many other parts"):
        put(uploads, upload, b"7890")
    assert join(uploads, upload, [part, part]) == b"abcabc"


def test_a_part_that_was_damaged_on_the_disk_is_found(uploads: FileUploads) -> None:
    upload = uploads.begin("rows.jsonl", 3)
    part = put(uploads, upload, b"abc")
    list_parts(uploads, upload)[0].write_bytes(b"abd")
    with pytest.raises(InvalidUpload, match="damaged"):
        join(uploads, upload, [part])


def test_an_upload_ends_once_and_keeps_no_parts(uploads: FileUploads) -> None:
    upload = uploads.begin("rows.jsonl", 3)
    part = put(uploads, upload, b"abc")
    with uploads.taken(upload, lambda: None) as now:
        uploads.end(now, COMPLETED, "file-1", [part])
    ended = uploads.get(upload.id)
    assert (ended.status, ended.file_id, ended.part_ids) == (COMPLETED, "file-1", (part,))
    assert list_parts(uploads, upload) == []
    for call in (lambda: put(uploads, upload, b"abc"), lambda: join(uploads, ended, [part])):
        with pytest.raises(InvalidUpload, match="is completed; begin another one"):
            call()
    assert list_parts(uploads, upload) == []


def test_who_ends_an_upload_is_alone(uploads: FileUploads) -> None:
    upload = uploads.begin("rows.jsonl", 3)
    order: list[str] = []

    def end(status: str) -> None:
        with uploads.taken(upload, lambda: None) as now:
            order.append(f"{status} finds {now.status}")
            time.sleep(0.3)
            uploads.end(now, status)

    threads = [threading.Thread(target=end, args=(status,)) for status in (COMPLETED, CANCELLED)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = order[0].split()[0]
    assert order == [f"{first} finds pending", f"{({COMPLETED, CANCELLED} - {first}).pop()} finds {first}"]

    def refuse() -> None:
        raise InvalidUpload("busy")

    with uploads.taken(upload, refuse), pytest.raises(InvalidUpload, match="busy"), uploads.taken(upload, refuse):
        pass


def test_what_expires_is_told_then_forgotten_and_its_parts_are_removed(tmp_path: Path) -> None:
    brief = FileUploads(tmp_path, 1 / 3600, 1000)
    upload = brief.begin("rows.jsonl", 3)
    put(brief, upload, b"abc")
    time.sleep(1.05)
    late = brief.get(upload.id)
    assert late.status == EXPIRED
    with pytest.raises(InvalidUpload, match="is expired"):
        put(brief, late, b"abc")
    brief.begin("rows.jsonl", 3)
    assert list_parts(brief, upload) == []
    time.sleep(1.05)
    brief.begin("rows.jsonl", 3)
    with pytest.raises(UploadNotFound):
        brief.get(upload.id)


def test_parts_that_a_killed_process_left_of_an_upload_that_has_ended_are_removed_with_the_next_one(
    uploads: FileUploads,
) -> None:
    upload = uploads.begin("rows.jsonl", 3)
    put(uploads, upload, b"abc")
    (part,) = list_parts(uploads, upload)
    content = part.read_bytes()
    uploads.end(upload, COMPLETED, "file-0")
    part.write_bytes(content)
    uploads.begin("rows.jsonl", 3)
    assert list_parts(uploads, upload) == []
    assert uploads.get(upload.id).file_id == "file-0"


def test_open_uploads_and_sizes_have_a_limit(uploads: FileUploads) -> None:
    with pytest.raises(UploadTooLarge, match="TUNEYARD_MAX_UPLOAD_BYTES"):
        uploads.begin("rows.jsonl", 1001)
    for _ in range(MAX_OPEN):
        last = uploads.begin("rows.jsonl", 1)
    with pytest.raises(InvalidUpload, match="complete or cancel"):
        uploads.begin("rows.jsonl", 1)
    uploads.end(last, CANCELLED)
    uploads.begin("rows.jsonl", 1)


@pytest.mark.parametrize("upload_id", ["", ".", "..", "upload_", f"upload_{'0' * 32}", "upload_../../registry", "lock"])
def test_no_other_folder_is_an_upload(uploads: FileUploads, upload_id: str) -> None:
    uploads.begin("rows.jsonl", 1)
    with pytest.raises(UploadNotFound):
        uploads.get(upload_id)


def test_records_of_unreadable_files_are_the_newest_of_each_owner(tmp_path: Path) -> None:
    files = UnreadableFiles(tmp_path)
    first = files.add("a.jsonl", 3, "ab", "no rows")
    assert files.add("a.jsonl", 3, "ab", "no rows") == first
    assert files.add("b.jsonl", 3, "ab", "no rows").id != first.id
    for number in range(MOST_KEPT - 1):
        files.add(f"{number}.jsonl", 3, "ab", "no rows")
    assert len(files.list_all()) == MOST_KEPT
    assert files.find(first.id) is None
    assert files.find("../unreadable") is None
