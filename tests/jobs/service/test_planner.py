"""The planner process: plans, errors, and an end when nobody waits for it any more."""

import json
import sys
import time

import psutil
import pytest

from jobs.errors import PlanningFailed
from jobs.service.planner import PlanCancelled, Planner, plan_once
from jobs.settings import Settings
from sft.config import SFTConfig
from sft.errors import DatasetNotFound, DeviceNotFound, InvalidConfig, ModelNotFound, TemplateNotFound
from sft.planning.devices import Card
from tests.conftest import is_gone, wait_until
from tests.tiny_models import save_tiny_llama
from tuneyard_wire.plan import Plan

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def settings(tmp_path_factory, registry):
    """A state folder with a tiny model and a file of rows."""
    found = Settings(home=tmp_path_factory.mktemp("home"), dataset_registry=registry)
    save_tiny_llama(found.model_root / "tiny/llama")
    found.data_root.mkdir(parents=True)
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}."} for n in range(40)]
    (found.data_root / "rows.json").write_text(json.dumps(rows), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def planner():
    """One planner process for all these tests; it is gone in the end."""
    planner = Planner(at_once=1)
    yield planner
    process = planner._process
    planner.close()
    assert process is None or process.poll() is not None
    planner.start()
    assert planner._process is None
    with pytest.raises(PlanningFailed, match="stopping"):
        planner.plan(config(), Settings())


def config(**fields):
    """A configuration over these rows."""
    usual = {"base_model": "tiny/llama", "dataset_name": "rows.json", "dataset_format": "alpaca", "batch_size": 2}
    return SFTConfig.from_dict(usual | {"mixed_precision": "none"} | fields)


def test_a_plan_comes_from_another_process_and_the_next_one_finds_the_rows_tokenized(planner, settings):
    first = planner.plan(config(), settings)
    second = planner.plan(config(), settings)

    assert first["dataset"]["rows"] == 40
    assert first["rows"]["train"]["used"] + first["rows"]["eval"]["used"] == 40
    assert (first["was_tokenized_before"], second["was_tokenized_before"]) == (False, True)
    assert first["rows"] == second["rows"]
    assert json.loads(json.dumps(first, allow_nan=False)) == first


def test_a_plan_of_several_datasets_tells_each_ones_rows(planner, settings):
    (settings.data_root / "more.json").write_text(json.dumps([{"instruction": "Say.", "output": "It is."}] * 10))
    (settings.data_root / "held.json").write_text(json.dumps([{"instruction": "Say 50.", "output": "It is 50."}] * 3))
    sources = [{"name": "rows.json", "weight": 0.5}, {"name": "more.json", "weight": 2}]
    plan = planner.plan(config(dataset_name=sources, validation_dataset="held.json"), settings)

    taken = [(part["name"], part["taken"], part["repeated"], part["left_out"]) for part in plan["sources"]]
    assert taken == [("rows.json", 20, 0, 20), ("more.json", 20, 10, 0), ("held.json", None, None, None)]
    assert plan["batches"]["batches_per_epoch"] == 20  # of 2 rows each
    assert [plan["rows"][split]["used"] for split in ("train", "eval")] == [50, 3]
    assert (plan["dataset"]["name"], plan["dataset"]["source"]) == ("0.5 x rows.json, 2 x more.json", "mix")
    assert Plan.model_validate(plan).sources[1].train.used == 10
    alone = planner.plan(config(), settings)
    assert "sources" not in Plan.model_validate(alone).model_dump(mode="json")


def test_a_plan_can_be_for_a_device_that_is_not_here(planner, settings):
    own = settings.model_copy(update={"plan_devices": {"lab": Card(memory_gib=48, teraflops=90)}})
    plan = planner.plan(config(use_qlora=True), own, device="lab")

    assert (plan["device"]["name"], plan["device"]["is_here"]) == ("lab", False)
    assert plan["memory"]["total_bytes"] == 48 * 2**30
    with pytest.raises(DeviceNotFound, match="device 'lab' is not known"):
        planner.plan(config(), settings, device="lab")


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"base_model": "nobody/nothing"}, ModelNotFound, "nobody/nothing"),
        ({"dataset_name": "handbook@v9.9"}, DatasetNotFound, "v9.9"),
        ({"dataset_name": "../rows.json"}, InvalidConfig, "data root"),
        ({"template_name": "llama3"}, TemplateNotFound, r"<\|eot_id\|>"),
        ({"lora_target_modules": ["nothing"]}, InvalidConfig, "lora_target_modules"),
        ({"output_dir": "/etc"}, InvalidConfig, "output_dir"),
    ],
)
def test_errors_come_back_as_what_they_are(planner, settings, fields, error, words):
    with pytest.raises(error, match=words):
        planner.plan(config(**fields), settings)


def test_a_plan_nobody_waits_for_is_ended_and_the_next_one_works(planner, settings):
    planner.plan(config(), settings)
    process = psutil.Process(planner._process.pid)
    seen = []

    def is_cancelled():
        seen.extend(process.children())
        return bool(seen)

    with pytest.raises(PlanCancelled):
        planner.plan(config(seed=1), settings, is_cancelled)
    wait_until(lambda: all(map(is_gone, seen)), 60)
    assert planner.plan(config(), settings)["steps"] > 0


def test_a_plan_waits_for_its_turn_and_no_longer_than_its_time(settings):
    planner = Planner(at_once=1, timeout_seconds=0.5)
    with planner._slots.taken("a", lambda: None):
        started_at = time.monotonic()
        with pytest.raises(PlanningFailed, match=r"no plan within 0\.5 s"):
            planner.plan(config(), settings, client="a")
    assert time.monotonic() - started_at < 60  # a planner alone takes twice as long
    assert planner._process is None
    planner.close()


def test_a_planner_process_that_was_killed_is_replaced(planner, settings):
    planner.plan(config(), settings)
    planner._process.kill()
    planner._process.wait()

    assert planner.plan(config(), settings)["steps"] > 0


def test_a_plan_is_begun_once_more_if_the_planner_is_killed_meanwhile(planner, settings):
    planner.plan(config(), settings)
    process = planner._process
    killed = []

    def kill_once():
        if not killed and psutil.Process(process.pid).children():
            process.kill()
            killed.append(process)
        return False

    assert planner.plan(config(seed=2), settings, kill_once)["steps"] > 0
    assert killed == [process]
    assert planner._process is not process


def test_a_planner_that_always_dies_is_told_after_the_second_time(settings, monkeypatch):
    """Also one whose process still counts as running when its socket is closed already."""
    monkeypatch.setattr("jobs.service.planner.COMMAND", (sys.executable, "-c", DYING))
    planner = Planner()
    started = []
    start = planner.start

    def count():
        start()
        if planner._process not in started:
            started.append(planner._process)

    monkeypatch.setattr(planner, "start", count)
    try:
        with pytest.raises(PlanningFailed, match="ended without a response"):
            planner.plan(config(), settings)
    finally:
        planner.close()
    assert len(started) == 2


def test_one_process_for_one_plan(settings):
    assert plan_once(config(), settings)["dataset"]["name"] == "rows.json"


def test_the_planner_process_ends_when_whoever_started_it_is_gone(planner):
    planner.start()
    planner._process.stdin.close()

    assert planner._process.wait(timeout=60) == 0


DYING = """
import os, socket, sys, time
door = socket.socket(socket.AF_UNIX)
door.bind(sys.argv[-1])
door.listen()
connection, _ = door.accept()
connection.close()
door.close()
time.sleep(0.5)
os._exit(1)
"""
SCRIPT = """
import socket, sys
door = socket.socket(socket.AF_UNIX)
door.bind(sys.argv[-1])
door.listen()
while True:
    connection, _ = door.accept()
    connection.recv(2**16)
    connection.sendall(b'{"plan": {}}')
    connection.close()
"""


def test_a_planner_that_was_about_to_end_when_it_was_looked_at_is_started_again(settings, monkeypatch):
    """The kernel closes a process's sockets before it says that the process has ended."""
    monkeypatch.setattr("jobs.service.planner.COMMAND", (sys.executable, "-c", SCRIPT))
    planner = Planner()
    try:
        assert planner.plan(config(), settings) == {}
        process = planner._process
        process.kill()
        process.wait()
        answers = iter([None])
        process.poll = lambda: next(answers, process.returncode)
        assert planner.plan(config(), settings) == {}
        assert planner._process is not process
    finally:
        planner.close()
