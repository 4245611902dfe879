"""Versions of added data: what is published stays what it was, and a kill leaves the old state or the new one."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from jobs.errors import NameTaken
from jobs.own_data.registry import OwnRegistry
from jobs.settings import Settings
from sft.errors import DatasetNotFound, InvalidConfig, InvalidDataset
from tests.jobs.own_data.rows import add, list_files, rows
from tuneyard_wire.dataset_reference import DatasetReference


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path / "home")


def find(settings: Settings, reference: str):
    return OwnRegistry(settings.home).find(DatasetReference.parse(reference))


def test_other_content_is_the_next_version_and_the_same_content_the_version_that_it_was(settings):
    first, second, again = (add(settings, rows(text)) for text in ("a", "b", "a"))

    assert [str(one.version.reference) for one in (first, second, again)] == ["support@v1", "support@v2", "support@v1"]
    assert [one.is_new for one in (first, second, again)] == [True, True, False]
    assert find(settings, "support").version == find(settings, "support@main").version == "v2"
    assert find(settings, f"support@{first.version.commit}").version == "v1"
    assert (first.version.format, first.version.rows, first.version.filename) == ("alpaca", 1, "support.jsonl")
    assert len(list_files(settings.home)) == 2  # the two contents, and nothing of the uploads


def test_dvc_reads_every_version_of_the_registry(settings, tmp_path):
    for text in ("a", "b"):
        add(settings, rows(text))
    registry, got = OwnRegistry(settings.home).folder, tmp_path / "got.jsonl"
    command = [sys.executable, "-P", "-m", "dvc", "get", str(registry), "support.jsonl", "--rev", "support@v1"]
    env = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(tmp_path / "site")}
    subprocess.run([*command, "-o", str(got)], cwd=tmp_path, env=env, check=True, capture_output=True, timeout=120)

    assert got.read_bytes() == rows("a")
    status = subprocess.run(["git", "-C", str(registry), "status", "--short"], capture_output=True, check=True)
    assert status.stdout == b""


def test_a_deleted_version_is_gone_with_its_content_and_its_number_is_not_given_again(settings):
    for text in ("a", "b"):
        add(settings, rows(text))
    registry = OwnRegistry(settings.home)
    registry.remove([find(settings, "support@v2")])

    with pytest.raises(DatasetNotFound, match=r"support@v2 is not a version of support, which was deleted; it has v1"):
        find(settings, "support@v2")
    assert find(settings, "support").version == "v1"
    assert len(list_files(settings.home)) == 1
    objects = subprocess.run(
        ["git", "-C", str(registry.folder), "fsck", "--unreachable", "--no-reflogs"], capture_output=True, check=True
    )
    assert objects.stdout == b""  # what was recorded of it is gone too
    assert add(settings, rows("b")).version.version == "v3"


def test_content_that_another_dataset_has_too_stays_when_one_is_deleted(settings):
    add(settings, rows("a"), name="one")
    add(settings, rows("a"), name="two")
    registry = OwnRegistry(settings.home)
    registry.remove([find(settings, "one")])

    assert find(settings, "one") is None
    assert registry.locate(find(settings, "two")).read_bytes() == rows("a")


def test_a_file_that_is_refused_leaves_nothing(settings):
    for content, filename, problem in (
        (b"", "a.jsonl", "a.jsonl has no rows"),
        (b"PK\x03\x04....", "a.jsonl", "is a ZIP archive or an Excel file"),
        (b"\x1f\x8b" + b"\0" * 64, "a.jsonl.gz", "can't be unpacked"),
    ):
        with pytest.raises(InvalidDataset, match=problem):
            add(settings, content, filename)
    with pytest.raises(InvalidConfig, match="file must end in one of"):
        add(settings, rows("a"), "rows.txt")

    assert list_files(settings.home) == set()
    assert OwnRegistry(settings.home).list_newest() == []


def test_a_bomb_of_a_compressed_file_is_refused(settings):
    import gzip

    bomb = gzip.compress(rows("a") + b" " * (200 << 20))  # 200 MB in 0.2
    with pytest.raises(InvalidDataset, match="unpacks to more than"):
        add(settings, bomb, "bomb.jsonl.gz")
    assert list_files(settings.home) == set()


def test_a_name_of_the_configured_registry_or_of_a_file_is_refused(settings, registry):
    (settings.data_root / "mine").mkdir(parents=True)
    named = settings.model_copy(update={"dataset_registry": registry})
    for where, name in ((settings, "handbook"), (named, "handbook"), (settings, "mine")):
        with pytest.raises(NameTaken, match=f"name '{name}' is a"):
            add(where, rows("a"), name=name)
    assert list_files(settings.home) == set()


def test_only_its_owner_adds_versions_to_a_dataset(settings):
    mine, other = uuid4(), uuid4()
    add(settings, rows("a"), owner=mine, may_extend_all=False)
    with pytest.raises(NameTaken, match="is a dataset of another key"):
        add(settings, rows("b"), owner=other, may_extend_all=False)
    assert add(settings, rows("b"), owner=mine, may_extend_all=False).version.version == "v2"
    assert add(settings, rows("c"), owner=other).version.owner == mine  # an admin's


def test_twenty_at_once_get_a_version_each(settings):
    with ThreadPoolExecutor(20) as pool:
        published = list(pool.map(lambda number: add(settings, rows(str(number))), range(20)))

    assert sorted(one.version.number for one in published) == list(range(1, 21))
    registry = OwnRegistry(settings.home)
    for one in published:
        assert registry.locate(one.version).read_bytes() == rows(rows_of(one.version.md5, 20))
    assert len(list_files(settings.home)) == 20


def rows_of(md5: str, count: int) -> str:
    from hashlib import md5 as digest

    return next(str(n) for n in range(count) if digest(rows(str(n)), usedforsecurity=False).hexdigest() == md5)


def test_a_kill_at_any_point_leaves_the_old_state_or_the_new_one(settings):
    """The processes that publish are killed at moments spread over their life; the next one tidies up after them."""
    import json

    from jobs.own_data.staging import staging_folder
    from jobs.service.data_adder import COMMAND, NewFile, _write_request

    add(settings, rows("first"))
    began = time.monotonic()
    add(settings, rows("second"))
    life = time.monotonic() - began
    for number in range(8):
        with staging_folder(settings.home) as folder:
            path = folder / "support.jsonl"
            path.write_bytes(rows(f"killed {number}"))
            process = subprocess.Popen(
                COMMAND, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            process.stdin.write(_write_request(NewFile(path, path.name, "support"), settings))
            process.stdin.close()
            time.sleep(life * (0.6 + 0.06 * number))
            process.send_signal(signal.SIGKILL)
            process.wait()
    versions = OwnRegistry(settings.home).list_versions("support")
    assert [version.number for version in versions] == list(range(1, len(versions) + 1))

    last = add(settings, rows("last"))
    registry = OwnRegistry(settings.home)
    known = registry.list_versions("support")
    assert last.version.number == known[-1].number == len(known)
    for version in known:
        content = registry.locate(version).read_bytes()
        assert (len(content), json.loads(content)["instruction"]) == (version.size, "Say it.")
    assert len(list_files(settings.home)) == len(known)
