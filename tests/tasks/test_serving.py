"""The serving check of a job: its result and tags, what it is skipped for, and a process that is killed in it."""

import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace
from uuid import uuid4

import psutil
import pytest
from mlflow import MlflowClient

from jobs.project import PROJECT_ROOT
from jobs.spec import JobSpec
from jobs.storage.events import read_events, write_event
from jobs.storage.tables import engine_for
from sft.config import SFTConfig
from sft.data.tokenization import prepare
from sft.training.session import TrainingSession
from tasks import serving
from tasks.dataset_version import DatasetVersion
from tasks.journal import open_journal
from tasks.register import register
from tasks.serving import check_serving, find_obstacle
from tests.conftest import command_line, wait_until
from tests.tiny_models import save_tiny_llama
from tuneyard_wire.jobs import Result

pytestmark = pytest.mark.stack

VALUES = {"base_model": "tiny", "dataset_name": "rows", "dataset_format": "alpaca", "template_name": "chatml"}
SMALL = {"max_steps": 1, "max_seq_length": 64, "mixed_precision": "none", "validation_split": 0.25}


def make_files(folder):
    """A model and rows."""
    save_tiny_llama(folder / "model")
    rows = [{"instruction": f"Count to {n}.", "output": str(n)} for n in range(16)]
    (folder / "rows.json").write_text(json.dumps(rows))


def run_job(settings, job_id, folder):
    """Train one step and register, as a job does; returns its result."""
    config = SFTConfig.from_dict(VALUES | SMALL)
    model, rows = folder / "model", folder / "rows.json"
    dataset = DatasetVersion("rows", None, None, "0" * 32, rows, None, 16, "file", str(rows))
    prepared = prepare(config, model, rows, folder / "cache")
    with open_journal(settings, job_id, JobSpec(config=config, adapter_name=f"check-{job_id}")) as journal:
        session = TrainingSession(config, prepared, model, folder / "out")
        journal.open_trackers(dataset)
        training = session.train()
        return register.fn(session, journal, dataset, prepared, {}, training, session.evaluate())


def read_phases(stack, job_id):
    events = read_events(engine_for(stack.database_url), job_id)
    return [event.data["phase"] for event in events if event.event == "phase"]


def test_a_job_tells_what_was_checked_and_tags_the_version(stack, tmp_path):
    job_id = uuid4()
    make_files(tmp_path)
    result = run_job(stack.model_copy(update={"serving_check_seconds": 200.0}), job_id, tmp_path)

    checked = Result.model_validate(result).serving_check
    assert (checked.status, checked.prompts, checked.equal_prompts) == ("warning", checked.prompts, checked.prompts)
    assert checked.prompts >= 1
    assert checked.served_loss == pytest.approx(checked.loss, rel=1e-3)
    (finding,) = checked.findings  # after one step
    assert "did not end by themselves within 64 tokens" in finding
    assert f"serving check: {finding}" in result["warnings"]
    version = MlflowClient(stack.mlflow_tracking_uri).get_model_version(result["model_name"], result["model_version"])
    assert version.tags["serving_check"] == "warning"
    assert version.tags["serving_check_details"].startswith(finding)
    assert read_phases(stack, job_id) == ["starting", "checking", "registering"]


@pytest.mark.parametrize(
    ("seconds", "fields", "stored", "reason"),
    [
        (0.0, {}, {}, "TUNEYARD_SERVING_CHECK_SECONDS is 0"),
        (9.0, {"shard_model": True}, {}, "the base model is split over several devices (shard_model)"),
        (9.0, {"use_qlora": True}, {}, "the base model is quantized"),
        (9.0, {}, {"quantization_config": {"quant_method": "gptq"}}, "the base model is quantized"),
        (9.0, {}, {"text_config": {"quantization_config": {"bits": 4}}}, "the base model is quantized"),
    ],
)
def test_what_is_not_checked_is_skipped_with_its_reason(stack, tmp_path, seconds, fields, stored, reason):
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = SimpleNamespace(**({"shard_model": False, "use_qlora": False} | fields))
    journal = SimpleNamespace(settings=stack.model_copy(update={"serving_check_seconds": seconds}))
    session = SimpleNamespace(config=config, model_path=tmp_path)
    assert find_obstacle(session, journal) == reason
    verdict = check_serving(session, journal, None, None, tmp_path, reason)
    assert (verdict.status, verdict.reason) == ("skipped", reason)


def test_a_check_that_is_off_changes_nothing_of_a_job(stack, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "ask", lambda request: pytest.fail("a process was started"))
    make_files(tmp_path)
    job_id = uuid4()
    result = run_job(stack, job_id, tmp_path)
    assert result["serving_check"]["status"] == "skipped"
    assert read_phases(stack, job_id) == ["starting", "registering"]


def test_a_model_too_large_for_what_is_left_is_skipped(stack, tmp_path, monkeypatch):
    make_files(tmp_path)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**8, total=10**9))
    monkeypatch.setattr(serving, "ask", lambda request: pytest.fail("a process was started"))
    result = run_job(stack.model_copy(update={"serving_check_seconds": 200.0}), uuid4(), tmp_path)
    assert result["serving_check"]["status"] == "skipped"
    assert "GB are left" in result["serving_check"]["reason"]
    assert result["model_version"] == "1"


KILLED = """
import sys
from pathlib import Path
from uuid import UUID
from jobs.settings import Settings
from tests.tasks.test_serving import run_job
run_job(Settings(), UUID(sys.argv[1]), Path(sys.argv[2]))
"""


def start_checking(stack, job_id, folder):
    """Start a job's process; returns it once it checks, with the process that it checks by."""
    addresses = {"TUNEYARD_DATABASE_URL": stack.database_url, "MLFLOW_TRACKING_URI": stack.mlflow_tracking_uri}
    more = {"TUNEYARD_HOME": str(stack.home), "PYTHONPATH": str(PROJECT_ROOT), "TUNEYARD_SERVING_CHECK_SECONDS": "200"}
    command = [sys.executable, "-c", KILLED, str(job_id), str(folder)]
    process = subprocess.Popen(command, env=os.environ | addresses | more)
    found = []

    def is_checking():
        assert process.poll() is None
        children = psutil.Process(process.pid).children()
        found[:] = [child for child in children if "sft.serving.plain" in command_line(child)]
        return bool(found)

    wait_until(is_checking, 120)
    return process, found[0]


def die_while_checking(settings, job_id, folder):
    """What a second process leaves that checks, as one death does not keep it from that, and is killed."""
    engine = engine_for(settings.database_url)
    journal = SimpleNamespace(settings=settings, job_id=job_id, attempt=SimpleNamespace(writing=engine.begin))
    session = SimpleNamespace(config=SFTConfig.from_dict(VALUES | SMALL), model_path=folder / "model")
    for phase in ("starting", "checking"):
        if phase == "checking":
            assert find_obstacle(session, journal) is None
        with engine.begin() as connection:
            write_event(connection, job_id, "phase", {"phase": phase})


def test_a_job_killed_while_it_checks_registers_once_and_after_two_kills_without_a_check(stack, tmp_path):
    make_files(tmp_path)
    job_id = uuid4()
    process, child = start_checking(stack, job_id, tmp_path)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 60)
    settings = stack.model_copy(update={"serving_check_seconds": 200.0})
    die_while_checking(settings, job_id, tmp_path)

    result = run_job(settings, job_id, tmp_path)

    assert result["serving_check"]["status"] == "skipped"
    assert result["serving_check"]["reason"].startswith("2 processes were killed while checking")
    client = MlflowClient(stack.mlflow_tracking_uri)
    assert len(client.search_model_versions(f"name = 'check-{job_id}'")) == 1
    assert read_phases(stack, job_id).count("checking") == 2
