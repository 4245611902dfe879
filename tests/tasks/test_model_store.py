"""Base models in the store: what one machine has, others fetch, once and verified."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from uuid import uuid4

import pytest

from jobs.settings import Settings
from jobs.shared_store import SharedStore, owner_of
from sft.errors import DiskFull, ModelNotFound
from tasks import model_store
from tasks.model_store import CACHE, OF_JOB, OWNER, digest_files, locate_model, send_model
from tests.conftest import wait_until
from tests.tiny_models import save_tiny_model

SECONDS = 60
NAME = "tiny/llama"


@pytest.fixture
def shared(tmp_path):
    return SharedStore((tmp_path / "shared").as_uri())


@pytest.fixture
def host(tmp_path, shared):
    """Settings of machines without a common disk, by their names."""

    def settings(name, **more):
        return Settings(home=tmp_path / name, store=shared.url, **more)

    return settings


@pytest.fixture(autouse=True)
def without_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def put_model(settings, name=NAME, **options):
    return save_tiny_model("llama", settings.model_root / name, **options)


def send(settings, shared, job_id, name=NAME):
    send_model(name, locate_model(name, settings, job_id), settings, job_id, nullcontext)
    wait_until(lambda: shared.get(owner_of(job_id), OF_JOB) is not None, SECONDS)


def test_a_machine_without_the_model_fetches_it(host, shared):
    put_model(host("one"))
    job_id = uuid4()
    send(host("one"), shared, job_id)
    assert locate_model(NAME, host("one"), job_id) == host("one").model_root / NAME  # in place where it is

    fetched = locate_model(NAME, host("two"), job_id)
    assert fetched.parent == host("two").home / CACHE
    assert digest_files(fetched, host("two").home) == digest_files(host("one").model_root / NAME, host("one").home)
    assert (
        locate_model(NAME, host("three")).parent == host("three").home / CACHE
    )  # by its name, for a plan or a new job


def test_it_is_sent_once_for_all_jobs(host, shared, monkeypatch):
    put_model(host("one"))
    sent = []
    put = SharedStore.put_file
    monkeypatch.setattr(SharedStore, "put_file", lambda *given: sent.append(put(*given)) or sent[-1])
    for _ in range(2):
        send(host("one"), shared, uuid4())
    half = len(sent) // 2
    assert all(sent[:half])
    assert not any(sent[half:])


def test_a_job_goes_on_with_the_model_it_began_with(host, shared):
    put_model(host("one"))
    job_id = uuid4()
    send(host("one"), shared, job_id)
    began_with = digest_files(host("one").model_root / NAME, host("one").home)
    other = put_model(host("two"))
    (other / "generation_config.json").write_text("{}")
    found = locate_model(NAME, host("two"), job_id)
    assert found != other
    assert digest_files(found, host("two").home) == began_with
    assert locate_model(NAME, host("two"), uuid4()) == other  # a job that begins here


def test_what_nobody_has_is_not_found(host, shared):
    with pytest.raises(ModelNotFound, match="has no such model either"):
        locate_model(NAME, host("one"), uuid4())


@pytest.mark.parametrize("name", ["../models/tiny/llama", "/etc/passwd", "a/../../b", "x\0y"])
def test_a_name_leads_nowhere_else_in_the_store(host, shared, name, monkeypatch):
    asked = []
    get = SharedStore.get
    monkeypatch.setattr(SharedStore, "get", lambda self, owner, key: asked.append(key) or get(self, owner, key))
    with pytest.raises(ModelNotFound):
        locate_model(name, host("one"), uuid4())
    assert asked == [OF_JOB]


def test_parallel_jobs_fetch_it_once(host, shared, monkeypatch):
    put_model(host("one"))
    send(host("one"), shared, uuid4())
    fetched = []
    fetch = SharedStore.fetch
    monkeypatch.setattr(SharedStore, "fetch", lambda *given: fetched.append(1) or fetch(*given))
    with ThreadPoolExecutor(4) as pool:
        folders = {*pool.map(lambda _: locate_model(NAME, host("two")), range(4))}
    assert (len(folders), len(fetched)) == (1, 1)


def test_the_cache_is_bounded_and_keeps_what_is_in_use(host, shared, monkeypatch):
    names = ["a/one", "b/two", "c/three"]
    for name in names:
        folder = put_model(host("one"), name)
        (folder / "README.md").write_text(name)
        send(host("one"), shared, uuid4(), name)
    size = shared.get(OWNER, names[0]).bytes
    settings = host("two", model_cache_bytes=int(2.5 * size))
    held = locate_model(names[0], settings)  # this process uses it
    code = f"from tests.tasks.test_model_store import *; print(locate_model({names[1]!r}, Settings()))"
    environment = os.environ | {
        "TUNEYARD_HOME": str(settings.home), "TUNEYARD_STORE": shared.url,
        "TUNEYARD_MODEL_CACHE_BYTES": str(settings.model_cache_bytes),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    other = done.stdout.strip()  # of a process that has ended
    os.utime(other)
    third = locate_model(names[2], settings)
    left = {path for path in (settings.home / CACHE).iterdir() if path.is_dir()}
    assert left == {held, third}
    assert other not in map(str, left)


def test_a_disk_without_room_for_it_is_full_before_anything_is_fetched(host, shared, monkeypatch):
    put_model(host("one"))
    send(host("one"), shared, uuid4())
    monkeypatch.setattr(model_store, "measure_free", lambda _: 10)
    with pytest.raises(DiskFull, match=r"base model needs .* are free"):
        locate_model(NAME, host("two"))


def test_a_model_is_hashed_again_only_when_a_file_changes(host, monkeypatch):
    settings = host("one")
    folder = put_model(settings)
    before = digest_files(folder, settings.home)
    hashed = []
    hash_file = model_store.hash_file
    monkeypatch.setattr(model_store, "hash_file", lambda path: hashed.append(path.name) or hash_file(path))
    assert digest_files(folder, settings.home) == before
    assert hashed == []
    (folder / "config.json").write_text("{}")
    assert digest_files(folder, settings.home) != before
    assert hashed == ["config.json"]


def test_models_stay_here_if_that_is_wished(host, shared):
    settings = host("one", store_models=False)
    put_model(settings)
    send_model(NAME, settings.model_root / NAME, settings, uuid4(), nullcontext)
    assert shared.list(OWNER) == {}


def test_a_list_of_files_that_cannot_be_read_is_written_again(host, shared, tmp_path):
    folder, job_id = put_model(host("one")), uuid4()
    lists = [
        tmp_path / "shared" / place / f"{name}.json" for place, name in ((OWNER, NAME), (owner_of(job_id), OF_JOB))
    ]
    for path in lists:
        path.parent.mkdir(parents=True)
        path.write_text("{")
    with pytest.raises(ModelNotFound, match="no such model either"):
        locate_model(NAME, host("two"), job_id)
    assert locate_model(NAME, host("one"), job_id) == folder
    send_model(NAME, folder, host("one"), job_id, nullcontext)
    wait_until(lambda: all(path.read_text() != "{" for path in lists), SECONDS)
    assert digest_files(locate_model(NAME, host("two"), job_id), tmp_path) == digest_files(folder, tmp_path)
