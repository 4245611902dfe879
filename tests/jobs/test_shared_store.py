"""The shared store: a folder is whole there or absent, is sent once, and comes back as it was."""

import json
import os
import socket
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs.errors import StoreRefused
from jobs.lifecycle.attempts import Superseded
from jobs.network import object_storage
from jobs.settings import Settings
from jobs.shared_store import SharedStore, hash_file
from jobs.store_lists import Damaged
from sft.errors import StackError
from tests.conftest import free_port
from tests.s3_server import BUCKET, s3_server

FILES = {"weights.bin": bytes(range(256)) * 400, "deep/tokenizer.json": b"{}", "empty": b""}


@pytest.fixture(scope="module")
def s3():
    with s3_server("AWS_ENDPOINT_URL") as server:
        yield server


@pytest.fixture(params=["s3", "file"])
def store(request, tmp_path):
    if request.param == "file":
        return SharedStore((tmp_path / "shared").as_uri())
    request.getfixturevalue("s3")
    return SharedStore(f"s3://{BUCKET}/{tmp_path.name}")


def write(folder, files=FILES):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_put_comes_back_and_is_sent_once(store, tmp_path):
    folder = write(tmp_path / "one")
    total = sum(map(len, FILES.values()))
    assert store.put("jobs/a", "things/one", folder) == total
    write(folder, {"weights.bin": b"others"})
    assert store.put("jobs/a", "things/two", folder) == len(b"others")  # the rest is there
    assert store.put("jobs/b", "things/one", folder) > len(b"others")  # another owner's own

    kept = store.list("jobs/a", "things")
    assert {name: thing.bytes for name, thing in kept.items()} == {"things/one": total, "things/two": 8}
    store.fetch("jobs/a", kept["things/one"], tmp_path / "back")
    assert read(tmp_path / "back") == FILES
    assert store.get("jobs/a", "things/two") == kept["things/two"]
    assert (store.get("jobs/a", "things/three"), store.list("jobs/none")) == (None, {})


def test_what_is_forgotten_leaves_what_others_consist_of(store, tmp_path):
    folder = write(tmp_path / "one")
    store.put("jobs/a", "things/one", folder)
    write(folder, {"weights.bin": b"others"})
    store.put("jobs/a", "things/two", folder)
    store.forget("jobs/a", ["things/one"])
    [(name, kept)] = store.list("jobs/a").items()
    assert name == "things/two"
    store.fetch("jobs/a", kept, tmp_path / "back")
    assert read(tmp_path / "back") == FILES | {"weights.bin": b"others"}
    with store._storage() as (storage, root):
        assert len(storage.find(f"{root}/jobs/a/files")) == len(FILES)


def test_who_may_not_publish_leaves_nothing_to_see(store, tmp_path):
    @contextmanager
    def refused():
        raise Superseded("another attempt has begun")
        yield

    with pytest.raises(Superseded):
        store.put("jobs/a", "things/one", write(tmp_path / "one"), refused)
    assert store.list("jobs/a") == {}


@pytest.mark.parametrize("harm", ["changed", "cut", "gone"])
def test_a_file_that_is_not_what_was_put_there_is_damage(store, tmp_path, harm):
    store.put("jobs/a", "one", write(tmp_path / "one"))
    [kept] = store.list("jobs/a").values()
    digest, size = kept.files["weights.bin"]
    with store._storage() as (storage, root):
        path = f"{root}/jobs/a/files/{digest}"
        if harm == "gone":
            storage.rm_file(path)
        else:
            storage.pipe_file(path, bytes(size if harm == "changed" else 10))
    with pytest.raises(Damaged, match=r"weights\.bin"):
        store.fetch("jobs/a", kept, tmp_path / harm)
    if harm == "cut":  # as after an upload that was cut off: it is sent again
        assert store.put("jobs/a", "one", tmp_path / "one") == size


@pytest.mark.parametrize("harm", ["before", "meanwhile"])
def test_a_file_that_changes_is_not_stored_by_what_it_was(store, tmp_path, harm, monkeypatch):
    """Else nobody could send the right one any more: a file of that digest and length is there."""
    file = write(tmp_path / "one", {"weights.bin": b"right"}) / "weights.bin"
    digest = hash_file(file)

    def hash_and_change(path):
        found = hash_file(path)
        path.write_bytes(b"wrong")
        os.utime(path, (1, 1))
        return found

    if harm == "before":
        file.write_bytes(b"wrong")
    else:
        monkeypatch.setattr("jobs.shared_store.hash_file", hash_and_change)
    with pytest.raises(Damaged, match="changed while it was sent"):
        store.put_file("jobs/a", file, digest)
    monkeypatch.undo()
    file.write_bytes(b"right")
    assert store.put_file("jobs/a", file, digest) == len(b"right")


def test_in_a_folder_a_file_is_whole_for_others_while_it_is_sent_again(tmp_path, monkeypatch):
    store = SharedStore((tmp_path / "shared").as_uri())
    folder = write(tmp_path / "one", {"weights.bin": b"right"})
    place = tmp_path / "shared/jobs/a/files" / hash_file(folder / "weights.bin")
    place.parent.mkdir(parents=True)

    def cut_off(_, target, *__, **___):
        Path(target).write_bytes(b"r")
        place.write_bytes(b"right")  # another process is faster
        raise OSError("killed")

    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.put_file", lambda _, *given: cut_off(*given))
    with pytest.raises(StackError):
        store.put("jobs/a", "one", folder)
    assert [path.read_bytes() for path in place.parent.iterdir()] == [b"right"]


TIME = '{"time": "2026-01-01T00:00:00+00:00", "files": '


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"[]", b'{"files": {"a": 1}}', b'{"time": "x", "files": {}}', b"[" * 200_000),
        *(f'{TIME}{{"a": ["{"0" * 64}", {size}]}}}}'.encode() for size in ("1e400", "-1")),
        *(f'{TIME}{{"{name}": ["{"0" * 64}", 1]}}}}'.encode() for name in ("", ".", "a//b", "a\\u0000b", "a\\ud800")),
        *(
            f'{TIME}{{"a": ["{digest}", 1]}}}}'.encode()
            for digest in ("../../../../etc/passwd", "0" * 63, "0" * 64 + "/")
        ),
    ],
)
def test_a_list_of_files_that_cannot_be_read_is_no_thing(store, tmp_path, text):
    with store._storage() as (storage, root):
        storage.pipe_file(f"{root}/jobs/a/one.json", text)
    assert store.list("jobs/a") == {}
    with pytest.raises(Damaged):
        store.get("jobs/a", "one")


@pytest.mark.parametrize("name", ["../out", "/etc/out", "a/../../out"])
def test_a_file_outside_its_folder_is_never_written(store, tmp_path, name):
    listing = {"time": "2026-01-01T00:00:00+00:00", "files": {name: ["0" * 64, 1]}}
    with store._storage() as (storage, root):
        storage.pipe_file(f"{root}/jobs/a/one.json", json.dumps(listing).encode())
    with pytest.raises(Damaged, match="outside its folder"):
        store.get("jobs/a", "one")


def test_a_store_is_tried_before_it_is_used(s3, monkeypatch, tmp_path):
    SharedStore(f"s3://{BUCKET}/deep/down").check()
    gone = SharedStore("s3://no-such-bucket/x")
    for use in (
        gone.check,
        lambda: gone.list("jobs/a"),
        lambda: gone.put("jobs/a", "one", write(tmp_path / "one")),
        lambda: gone.put("jobs/a", "one", tmp_path / "empty"),
    ):
        with pytest.raises(StoreRefused, match="does not exist; create it"):
            use()
    assert gone.get("jobs/a", "one") is None
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StackError, match="can't be reached"):
        SharedStore("s3://other-bucket/x").check()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(StoreRefused, match="Invalid endpoint"):
        SharedStore("s3://other-bucket/x").check()


@pytest.mark.parametrize(
    "what",
    ["profile", "config", "bundle", "empty bundle", "folder as bundle", "port", "no TLS", "retries", "token file"],
)
def test_settings_that_do_not_work_are_refused_not_waited_for(s3, monkeypatch, tmp_path, what):
    (tmp_path / "config").write_text("[default\n")
    (tmp_path / "empty").touch()
    if what == "token file":
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    secure = s3.url.replace("http://", "https://")
    for name, value in {
        "profile": {"AWS_PROFILE": "nobody"},
        "config": {"AWS_CONFIG_FILE": str(tmp_path / "config")},
        "bundle": {"AWS_CA_BUNDLE": str(tmp_path / "none.pem"), "AWS_ENDPOINT_URL": secure},
        "empty bundle": {"AWS_CA_BUNDLE": str(tmp_path / "empty"), "AWS_ENDPOINT_URL": secure},
        "folder as bundle": {"AWS_CA_BUNDLE": str(tmp_path), "AWS_ENDPOINT_URL": secure},
        "port": {"AWS_ENDPOINT_URL": "http://127.0.0.1:99999"},
        "no TLS": {"AWS_ENDPOINT_URL": secure},
        "retries": {"AWS_RETRY_MODE": "bogus"},
        "token file": {"AWS_WEB_IDENTITY_TOKEN_FILE": str(tmp_path / "none"), "AWS_ROLE_ARN": "arn:aws:iam::1:role/x"},
    }[what].items():
        monkeypatch.setenv(name, value)
    object_storage._s3_session.cache_clear()
    with pytest.raises(StoreRefused, match="correct the address"):
        SharedStore(f"s3://{BUCKET}/x").check()
    object_storage._s3_session.cache_clear()


def test_a_place_that_is_no_folder_or_bucket_is_refused(s3, tmp_path):
    (tmp_path / "file").touch()
    for url, words in (
        ((tmp_path / "file").as_uri(), "there is a file in its place"),
        ("s3://B A D/x", "Invalid bucket"),
    ):
        with pytest.raises(StoreRefused, match=words):
            SharedStore(url).check()


def test_a_store_that_is_silent_is_given_up_in_seconds(s3, monkeypatch):
    monkeypatch.setattr(object_storage, "READ_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and answers none
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(StackError, match="can't be reached"):
            SharedStore("s3://other-bucket/x").check()
        assert time.monotonic() - began < 30  # of the hour that it would be silent


def test_a_store_that_is_full_is_said_to_be_full(s3, tmp_path, monkeypatch):
    async def refuse(*_, **__):
        raise OSError(5, "An error occurred (XMinioStorageFull) when calling the PutObject operation")

    monkeypatch.setattr("s3fs.S3FileSystem._call_s3", refuse)
    with pytest.raises(StackError, match="is full"):
        SharedStore(f"s3://{BUCKET}/x").put("jobs/a", "one", write(tmp_path / "one"))


def test_a_store_whose_package_is_missing_says_what_to_install():
    with pytest.raises(StoreRefused, match="install its package"):
        SharedStore("gs://bucket/x").check()


@pytest.mark.parametrize(
    "url",
    [
        *("/mnt/shared", "ftp://host/x", "s3://", "s3:///", "file://shared", "file://./x"),
        *("s3://ann:secret@bucket/x", "s3://bucket/x?secret=1"),
        *("s3://bucket//x", "s3:///bucket", "s3://bucket/../x", "s3://bucket/x::file:///tmp", "file:///x::secret"),
        *("s3://bucket/x\n", "s3://bucket/x#secret", "s3://[::1/x"),
    ],
)
def test_an_address_that_is_none_of_a_store_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="store") as refused:
        Settings(store=url)
    assert "secret" not in str(refused.value)
