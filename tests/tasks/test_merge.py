"""A merge after the adapter is registered: one that fails, or is killed again and again, leaves the job its adapter."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

import psutil
import pytest
from prefect.exceptions import Abort

from jobs.project import PROJECT_ROOT
from jobs.spec import JobSpec
from jobs.storage.events import count_deaths, read_events
from jobs.storage.tables import engine_for
from sft.config import SFTConfig
from sft.data.tokenization import prepare
from sft.errors import MergeFailed, StackError
from sft.training.model_card import Provenance
from sft.training.session import TrainingSession
from tasks.dataset_version import DatasetVersion
from tasks.journal import open_journal
from tasks.merge import Merged, merge
from tasks.register import register
from tests.tiny_models import save_tiny_llama

pytestmark = pytest.mark.stack

SPEC = JobSpec(config=SFTConfig(base_model="tiny/llama", dataset_name="handbook@v1.0", dataset_format="alpaca"))


class Session:
    """Merges as a session does, or raises as one does."""

    def __init__(self, error=None):
        self.error, self.merges = error, 0

    def save_merged(self, adapter_dir, provenance):
        self.merges += 1
        if self.error is not None:
            raise self.error
        return adapter_dir.with_name("merged")


@pytest.fixture
def job_id():
    return uuid4()


def run(stack, job_id, session):
    with open_journal(stack, job_id, SPEC) as journal:
        return merge(session, journal, Path("/result/adapter"), Provenance())


def read_merges(stack, job_id):
    return [event.data for event in read_events(engine_for(stack.database_url), job_id) if event.event == "merge"]


def test_a_merge_is_told_with_its_folder(stack, job_id):
    assert run(stack, job_id, Session()) == Merged(Path("/result/merged"), None)
    assert read_merges(stack, job_id) == [{"merged_path": "/result/merged", "error": None}]
    events = read_events(engine_for(stack.database_url), job_id)
    phases = [event.data["phase"] for event in events if event.event == "phase"]
    assert phases == ["starting", "merging"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (MergeFailed("merging needs 9.9 GB"), "merging needs 9.9 GB"),
        (MemoryError(), "out of memory while merging; the adapter is registered; merge it on a machine with more"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"), "out of memory while"),
        (KeyError("lm_head.weight"), "KeyError: 'lm_head.weight'"),
    ],
)
def test_a_merge_that_fails_does_not_fail_the_job_and_says_why(stack, job_id, error, words):
    merged = run(stack, job_id, Session(error))
    assert merged.folder is None
    assert merged.error.startswith(words)
    (sentence,) = merged.warnings
    assert sentence == f"the adapter was not merged into its base model: {merged.error}"
    assert read_merges(stack, job_id) == [{"merged_path": None, "error": merged.error}]


def test_what_another_attempt_may_mend_is_left_to_it(stack, job_id):
    with pytest.raises(Abort):
        run(stack, job_id, Session(StackError("the database can't be reached")))
    assert read_merges(stack, job_id) == []
    assert run(stack, job_id, Session()).folder


def test_the_adapter_is_registered_before_its_merge_is_tried(stack, job_id, tmp_path, monkeypatch):
    """A real training on a machine without the memory for a merge."""
    model = save_tiny_llama(tmp_path / "model")
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([{"instruction": f"Count to {n}.", "output": str(n)} for n in range(8)]))
    values = {"base_model": "tiny", "dataset_name": "rows", "dataset_format": "alpaca", "template_name": "chatml"}
    small = {"max_steps": 1, "max_seq_length": 64, "mixed_precision": "none", "save_merged_model": True}
    config = SFTConfig.from_dict(values | small)
    dataset = DatasetVersion("rows", None, None, "0" * 32, rows, None, 8, "file", str(rows))
    prepared = prepare(config, model, rows, tmp_path / "cache")
    with open_journal(stack, job_id, JobSpec(config=config, adapter_name=f"merge-{job_id}")) as journal:
        session = TrainingSession(config, prepared, model, tmp_path / "out")
        journal.open_trackers(dataset)
        training = session.train()
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
        result = register.fn(session, journal, dataset, prepared, {}, training, session.evaluate())
    assert (result["model_name"], result["model_version"]) == (f"merge-{job_id}", "1")
    assert Path(result["adapter_path"], "adapter_model.safetensors").is_file()
    assert result["merged_path"] is None
    assert result["merge_error"].startswith("merging needs ")
    assert f"the adapter was not merged into its base model: {result['merge_error']}" in result["warnings"]
    assert read_merges(stack, job_id) == [{"merged_path": None, "error": result["merge_error"]}]
    assert not Path(result["adapter_path"]).with_name("merged").exists()


KILLED = """
import os, signal, sys
from uuid import UUID
from pathlib import Path
from jobs.settings import Settings
from sft.training.model_card import Provenance
from tasks.journal import open_journal
from tasks.merge import merge
from tests.tasks.test_merge import SPEC

class Killed:
    def save_merged(self, adapter_dir, provenance):
        os.kill(os.getpid(), signal.SIGKILL)

with open_journal(Settings(), UUID(sys.argv[1]), SPEC) as journal:
    merge(Killed(), journal, Path("/result/adapter"), Provenance())
"""


def test_a_process_killed_twice_while_it_merged_is_not_killed_a_third_time(stack, job_id):
    addresses = {"TUNEYARD_DATABASE_URL": stack.database_url, "MLFLOW_TRACKING_URI": stack.mlflow_tracking_uri}
    environment = os.environ | addresses | {"TUNEYARD_HOME": str(stack.home), "PYTHONPATH": str(PROJECT_ROOT)}
    for deaths in (1, 2):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(job_id)], env=environment, check=False)
        assert killed.returncode == -signal.SIGKILL
        with engine_for(stack.database_url).connect() as connection:
            assert count_deaths(connection, job_id, "merging") == deaths - 1  # the next attempt has not begun
    session = Session()
    merged = run(stack, job_id, session)
    assert session.merges == 0
    assert merged.error.startswith("2 processes were killed while merging, as when memory runs out; the adapter is ")
