"""Uploads of base models: in pieces, again after failures, and complete or absent."""

import hashlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from jobs.base_models import pieces, uploads
from jobs.base_models.announcing import AnnouncedFile
from jobs.base_models.catalog import list_names
from jobs.base_models.uploads import UPLOADS, IncomingModel, remove_expired
from jobs.errors import InvalidUpload, ModelExists, UploadConflict, UploadNotFound, UploadTooLarge
from jobs.settings import Settings
from jobs.shared_store import SharedStore
from sft.errors import DiskFull, ModelUnusable
from tests.model_files import read_files, write_model


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home")


@pytest.fixture
def files(tmp_path):
    return read_files(write_model(tmp_path / "base", shards=2))


def announce(files):
    return [AnnouncedFile(path, len(content), hashlib.sha256(content).hexdigest()) for path, content in files.items()]


def begin(files, settings, owner=None, name="me/base"):
    return IncomingModel.begin(name, announce(files), owner, settings)


def send(upload, path, content, offset=0):
    with upload.receiving(path, offset) as piece:
        if piece is not None:
            piece.write(content)


def send_all(upload, files):
    for path, content in files.items():
        send(upload, path, content)


def test_a_tokenizer_that_was_cut_off_is_told(settings, files):
    cut = {**files, "tokenizer.json": b'{"added_tokens": ['}
    upload = begin(cut, settings)
    send_all(upload, cut)
    assert "damaged tokenizer.json" in upload.publish()["problem"]


def test_files_are_published_together_with_their_content(settings, files):
    upload = begin(files, settings)
    send_all(upload, files)
    assert list_names(settings) == []

    model = upload.publish()
    assert (model["name"], model["kind"], model["problem"]) == ("me/base", "copy", None)
    assert read_files(settings.model_root / "me/base") == files
    assert [*(settings.model_root / UPLOADS).iterdir()] == []


def test_pieces_arrive_in_any_order_of_files_and_again(settings, files):
    upload = begin(files, settings)
    for path, content in reversed(files.items()):
        half = len(content) // 2
        send(upload, path, content[:half])
        send(upload, path, content[:half])  # its answer was lost
        assert upload.describe_file(path) == {
            "path": path,
            "bytes": len(content),
            "received_bytes": half,
            "complete": False,
        }
        with pytest.raises(UploadConflict, match=f"must be at most {half}"):
            send(upload, path, content[half + 1 :], half + 1)
        send(upload, path, content[half:], half)
        send(upload, path, content[half:], half)  # complete already
        assert upload.describe_file(path)["complete"]
    upload.publish()
    assert read_files(settings.model_root / "me/base") == files


def test_who_announces_the_same_goes_on_and_after_the_end_it_is_there(settings, files):
    path, content = next(iter(files.items()))
    send(begin(files, settings), path, content)
    again = begin(files, settings)
    assert again.describe_file(path)["complete"]
    send_all(again, files)
    again.publish()

    assert begin(files, settings).describe()["complete"]
    assert begin(files, settings).publish()["name"] == "me/base"  # the first answer was lost
    with pytest.raises(ModelExists, match="me/base"):
        begin(files | {"README.md": b"other"}, settings)


def test_content_that_is_not_the_announced_one_is_refused_and_can_be_sent_again(settings, files):
    upload = begin(files, settings)
    path, content = "config.json", files["config.json"]
    with pytest.raises(UploadConflict, match="SHA-256"):
        send(upload, path, content[:-1] + b"!")
    assert upload.describe_file(path)["received_bytes"] == 0
    with pytest.raises(UploadConflict, match="more bytes"):
        send(upload, path, content + b"!")
    send(upload, path, content)
    assert upload.describe_file(path)["complete"]


def test_it_is_not_published_before_all_has_arrived(settings, files):
    upload = begin(files, settings)
    send(upload, "config.json", files["config.json"])
    with pytest.raises(UploadConflict, match="and 4 more of me/base"):
        upload.publish()
    assert list_names(settings) == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"config.json": b"{"}, "not valid JSON"),
        ({"model-00001-of-00002.safetensors": b"short"}, "not a safetensors file"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": "../../x.safetensors"}}'}, "not a file beside it"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "third.safetensors"}}'},
            "third.safetensors is missing",
        ),
        ({"adapter_config.json": b"{}"}, "adapter"),
        ({"config.json": b'{"num_hidden_layers": 100000}'}, "num_hidden_layers"),
        ({"config.json": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"}, "."),
    ],
    ids=["JSON", "weights", "leads out", "missing shard", "adapter", "layers", "pointer"],
)
def test_damaged_models_are_refused_and_leave_nothing(settings, files, change, told):
    files |= change
    upload = begin(files, settings)
    send_all(upload, files)
    with pytest.raises(ModelUnusable, match=told):
        upload.publish()
    assert list_names(settings) == []
    assert [path for path in read_files(settings.model_root) if not path.endswith(".lock")] == []


@pytest.mark.parametrize(
    "path",
    [
        "../config.json", "/etc/passwd.json", "a/b.json", "additional_chat_templates/../x.json", ".hidden.json",
        "a\0.json",
        "model.bin", "run.py", "x" * 250 + ".json", "a\n.json", "additional_chat_templates/a/b.jinja", "upload+1.json",
    ],
)  # fmt: skip
def test_names_that_no_model_has_are_refused(settings, files, path):
    with pytest.raises(InvalidUpload, match="files"):
        begin(files | {path: b"{}"}, settings)
    assert not settings.model_root.exists()


def test_what_is_no_model_is_refused(settings, files):
    for lack in ("config.json", ".safetensors"):
        with pytest.raises(InvalidUpload):
            begin({path: content for path, content in files.items() if not path.endswith(lack)}, settings)
    with pytest.raises(InvalidUpload, match="case"):
        begin(files | {"Config.json": b"{}"}, settings)
    with pytest.raises(UploadNotFound, match="not one of the"):
        send(begin(files, settings), "other.json", b"{}")


def test_sizes_have_limits(tmp_path, settings, files):
    small = Settings(home=tmp_path / "home", max_model_bytes=1000)
    with pytest.raises(UploadTooLarge, match="TUNEYARD_MAX_MODEL_BYTES"):
        begin(files, small)
    huge = [AnnouncedFile("config.json", 2**48, "0" * 64), AnnouncedFile("model.safetensors", 9, "0" * 64)]
    limitless = Settings(home=tmp_path / "home", max_model_bytes=2**50)
    with pytest.raises(DiskFull, match="are free"):
        IncomingModel.begin("me/huge", huge, None, limitless)
    assert not [*settings.model_root.rglob("*.json")]


def test_a_full_disk_keeps_what_fits_and_the_upload_goes_on(small_disk, tmp_path):
    files = read_files(write_model(tmp_path / "base", numbers=500_000))
    settings = Settings(home=tmp_path / "home", model_root=small_disk / "models")
    upload = begin(files, settings)
    filler = small_disk / "filler"
    filler.write_bytes(bytes(1_500_000))
    with pytest.raises(DiskFull, match="go on with the upload"):
        send(upload, "model.safetensors", files["model.safetensors"])
    filler.unlink()

    received = upload.describe_file("model.safetensors")["received_bytes"]
    send(upload, "model.safetensors", files["model.safetensors"][received:], received)
    send_all(upload, files)
    upload.publish()
    assert read_files(settings.model_root / "me/base") == files


def test_another_key_does_not_see_an_upload(settings, files):
    owner = uuid4()
    upload = begin(files, settings, owner)
    assert IncomingModel.find(upload.id, owner, settings).name == "me/base"
    for other in (None, uuid4()):
        with pytest.raises(UploadNotFound):
            IncomingModel.find(upload.id, other, settings)
    for strange in ("", "..", "a" * 32, "../" + upload.id, upload.id + "\0", "ä" * 32):
        with pytest.raises(UploadNotFound):
            IncomingModel.find(strange, owner, settings)


def test_what_nobody_goes_on_with_is_removed_and_what_is_removed_is_told(settings, files, monkeypatch):
    left, used = begin(files, settings), begin(files, settings, name="me/other")
    long_ago = time.time() - uploads.KEPT_SECONDS - 1
    os.utime(left.folder, (long_ago, long_ago))
    remove_expired(settings)
    assert not left.folder.exists()
    assert used.folder.exists()
    for act in (lambda: send(left, "config.json", b"x"), left.publish):
        with pytest.raises(UploadNotFound, match="announce"):
            act()

    monkeypatch.setattr(uploads, "MOST_OPEN", 1)
    with pytest.raises(UploadTooLarge, match="in progress"):
        begin(files, settings, name="me/third")


def test_one_piece_of_a_file_at_a_time(settings, files, monkeypatch):
    monkeypatch.setattr(pieces, "LOCK_SECONDS", 0.1)
    upload = begin(files, settings)
    with (
        upload.receiving("config.json", 0),
        pytest.raises(UploadConflict, match="another piece"),
        upload.receiving("config.json", 0),
    ):
        pass


def test_pieces_at_once_write_no_more_than_was_announced(settings, files):
    upload = begin(files, settings)
    path, content = "config.json", files["config.json"]
    written, most = [], len(content)

    def work(number):
        try:
            send(upload, path, content if number % 2 else content + b"!" * 33)
        except UploadConflict:
            return
        finally:
            written.append(sum(one.stat().st_size for one in (upload.folder / "parts").iterdir()))

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    assert max(written) <= most
    assert upload.describe_file(path)["complete"]


def test_a_piece_that_waited_for_one_with_a_wrong_end_is_not_lost(settings, files):
    upload = begin(files, settings)
    path, content = "config.json", files["config.json"]
    with ThreadPoolExecutor(1) as pool:
        arrival = upload.receiving(path, 0)
        piece = arrival.__enter__()
        waiting = pool.submit(send, upload, path, content)
        while count_open(upload.folder / "parts" / path) < 2:  # this one, and the one that waits for its lock
            time.sleep(0.01)
        piece.write(content[:-1] + b"!")
        with pytest.raises(UploadConflict, match="SHA-256"):
            arrival.__exit__(None, None, None)
        waiting.result()
    assert upload.describe_file(path)["complete"]


def count_open(path):
    handles = [*Path("/proc/self/fd").iterdir()]
    return sum(one.exists() and one.samefile(path) for one in handles)


def test_an_upload_whose_name_is_taken_meanwhile_is_refused_and_removed(settings, files):
    late, other = begin(files, settings), files | {"README.md": b"other"}
    send_all(late, files)
    never_completed = begin(files | {"NOTICE": b"third"}, settings)
    first = begin(other, settings)
    send_all(first, other)
    first.publish()

    with pytest.raises(ModelExists, match="another base model me/base"):
        begin(files | {"NOTICE": b"third"}, settings)
    assert not never_completed.folder.exists()
    with pytest.raises(ModelExists, match="another base model me/base"):
        late.publish()
    assert [*(settings.model_root / UPLOADS).iterdir()] == []
    assert read_files(settings.model_root / "me/base") == other


def test_the_first_upload_of_all_is_refused_if_its_name_is_taken(settings, files):
    (settings.model_root / "me/base").mkdir(parents=True)
    (settings.model_root / "me/base/config.json").write_bytes(b'{"model_type": "llama"}')
    with pytest.raises(ModelExists, match="another base model me/base"):
        begin(files, settings)
    assert not (settings.model_root / UPLOADS).exists()


def test_many_at_once_publish_each_its_own_and_one_of_the_same_name(settings, files):
    outcomes = []

    def work(number):
        own = files | {"README.md": str(number).encode()}
        try:
            upload = begin(own, settings, name="me/base" if number < 10 else f"me/base{number}")
            send_all(upload, own)
            outcomes.append(upload.publish()["name"])
        except ModelExists:
            outcomes.append("exists")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == sorted(["exists"] * 9 + ["me/base", *(f"me/base{number}" for number in range(10, 20))])
    for name in list_names(settings):
        found = read_files(settings.model_root / name)
        assert {path: content for path, content in found.items() if path != "README.md"} == files
        assert name == "me/base" or found["README.md"] == name.removeprefix("me/base").encode()


def test_it_is_in_the_store_before_it_is_published(tmp_path, files):
    settings = Settings(home=tmp_path / "home", store=f"file://{tmp_path / 'store'}")
    upload = begin(files, settings)
    send_all(upload, files)
    (tmp_path / "store").write_text("in its place")
    with pytest.raises(Exception, match="TUNEYARD_STORE"):
        upload.publish()
    assert list_names(settings) == []
    (tmp_path / "store").unlink()
    (tmp_path / "store").mkdir()
    upload.publish()
    assert {*SharedStore.find(settings).get("models", "me/base").files} == {*files}
