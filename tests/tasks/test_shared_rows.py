"""A job's dataset and its tokenized rows in the store: a later attempt needs neither the registry nor the file."""

import json
from contextlib import suppress
from uuid import uuid4

import pytest
from prefect.exceptions import Abort

from jobs.shared_store import SharedStore, owner_of
from jobs.spec import JobSpec
from jobs.storage.reports import read_reports
from jobs.storage.tables import engine_for
from sft.config import SFTConfig
from sft.errors import DatasetNotFound, StackError
from tasks.journal import open_journal
from tasks.shared_rows import DATASETS, OF_JOB, ROWS, resolve_dataset, tokenize
from tests.conftest import wait_until
from tests.tiny_models import save_tiny_model

pytestmark = pytest.mark.stack

SECONDS = 60
ROW = {"instruction": "Count.", "output": "1 2 3"}
CONFIG = SFTConfig(base_model="tiny", dataset_name="mine", dataset_format="alpaca", max_seq_length=64)


@pytest.fixture
def host(stack, registry, tmp_path):
    """Settings of machines of one stack without a common disk, by their names."""

    def settings(name):
        roots = {"home": tmp_path / name, "data_root": tmp_path / name / "data", "output_root": tmp_path / name / "out"}
        shared = {"dataset_registry": registry, "store": (tmp_path / "shared").as_uri()}
        return stack.model_copy(update=roots | shared)

    return settings


def write_rows(settings, count):
    folder = settings.data_root / "mine"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.jsonl").write_text(f"{json.dumps(ROW)}\n" * count)
    (folder / "test.jsonl").write_text(f"{json.dumps(ROW)}\n")


def attempt(settings, job_id, model, config=CONFIG):
    """Resolve and tokenize as a job does; what both returned."""
    with suppress(Abort), open_journal(settings, job_id, JobSpec(config=config)) as journal:
        dataset = resolve_dataset.fn(config, journal)
        rows = tokenize.fn(config, dataset, model, journal)
        store = SharedStore.find(settings)
        wait_until(lambda: store.get(owner_of(job_id), OF_JOB) and store.list(ROWS), SECONDS)
        raise StackError("this attempt is lost")
    return dataset, rows


def test_a_later_attempt_trains_on_the_rows_of_the_first_one(host, tmp_path):
    model = save_tiny_model("llama", tmp_path / "model")
    job_id = uuid4()
    write_rows(host("one"), 4)
    began = attempt(host("one"), job_id, model)
    write_rows(host("one"), 9)  # changed meanwhile
    again = attempt(host("two"), job_id, model)  # which has no such file
    assert again[0].rows == began[0].rows == 4
    assert (again[0].md5, again[0].url, again[0].source) == (began[0].md5, began[0].url, "file")
    assert again[0].train_file.read_bytes() == f"{json.dumps(ROW)}\n".encode() * 4
    assert again[0].eval_file.read_bytes() == f"{json.dumps(ROW)}\n".encode()
    assert again[1].was_cached  # tokenized by the other machine
    assert again[1].manifest["key"] == began[1].manifest["key"]
    assert again[1].load_train()["input_ids"][:] == began[1].load_train()["input_ids"][:]
    with pytest.raises(DatasetNotFound):
        attempt(host("two"), uuid4(), model)


def test_a_later_attempt_has_all_datasets_of_a_mix(host, tmp_path):
    model, job_id = save_tiny_model("llama", tmp_path / "model"), uuid4()
    write_rows(host("one"), 4)
    (host("one").data_root / "held.jsonl").write_text(f"{json.dumps(ROW)}\n" * 3)
    sources = ["mine", {"name": "handbook@v1.0", "weight": 0.5}]
    changed = {"dataset_name": sources, "validation_dataset": "held.jsonl", "validation_split": 0.0, "max_samples": 9}
    config = SFTConfig.from_dict(CONFIG.to_dict() | changed | {"dataset_format": "auto", "template_name": "chatml"})
    began, again = (attempt(host(name), job_id, model, config) for name in ("one", "two"))
    assert [one.md5 for one in again[0].versions] == [one.md5 for one in began[0].versions]
    assert (again[0].md5, again[0].weights) == (began[0].md5, (1.0, 0.5))
    wait_until(lambda: len(SharedStore.find(host("one")).list(ROWS)) == 3, SECONDS)
    assert again[1].describe_parts() == began[1].describe_parts()
    for load in ("load_train", "load_eval"):
        assert getattr(again[1], load)()["input_ids"][:] == getattr(began[1], load)()["input_ids"][:]


def test_a_dataset_in_the_store_that_is_damaged_is_resolved_again(host, tmp_path, caplog):
    model = save_tiny_model("llama", tmp_path / "model")
    job_id = uuid4()
    write_rows(host("one"), 4)
    attempt(host("one"), job_id, model)
    store = SharedStore.find(host("one"))
    for digest, _ in store.get(owner_of(job_id), OF_JOB).files.values():
        with store._storage() as (storage, root):
            storage.pipe_file(f"{root}/{DATASETS}/files/{digest}", b"other")
    write_rows(host("two"), 5)
    dataset, _ = attempt(host("two"), job_id, model)
    assert dataset.rows == 5
    assert "is resolved again" in caplog.text


def test_the_phase_tells_how_far_tokenizing_is(host, tmp_path, monkeypatch):
    monkeypatch.setattr("tasks.tokenize.PROGRESS_SECONDS", 0)
    model, job_id, settings = save_tiny_model("llama", tmp_path / "model"), uuid4(), host("one")
    write_rows(settings, 4)
    with open_journal(settings, job_id, JobSpec(config=CONFIG)) as journal:
        dataset = resolve_dataset.fn(CONFIG, journal)
        tokenize.fn(CONFIG, dataset, model, journal)
        assert read_reports(engine_for(settings.database_url), [job_id])[job_id].phase == "tokenizing (100%)"


def test_all_parts_of_a_dataset_are_in_the_store(host, tmp_path):
    model, job_id = save_tiny_model("llama", tmp_path / "model"), uuid4()
    folder = host("one").data_root / "mine"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"train-{number:05}-of-00003.jsonl").write_text(f"{json.dumps(ROW)}\n" * (number + 1))
    began, again = (attempt(host(name), job_id, model) for name in ("one", "two"))
    assert began[0].rows == again[0].rows == 6
    assert again[0].train_file.parent != folder
    assert sorted(path.name for path in again[0].train_file.parent.iterdir()) == [
        f"train-{number:05}-of-00003.jsonl" for number in range(3)
    ]
    assert again[1].was_cached
