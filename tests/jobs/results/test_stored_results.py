"""What the store has of a job, on a machine that has nothing of it: checkpoints and the merged model."""

import io
import tarfile
from dataclasses import replace
from uuid import uuid4

import pytest

from jobs.errors import AdapterNotFound
from jobs.folders import checkpoint_folder, job_folder
from jobs.results.records import list_checkpoints
from jobs.results.result_files import prepare_download
from jobs.service.job import Job
from jobs.settings import Settings
from jobs.shared_store import MERGED, SharedStore, checkpoint_name, owner_of
from jobs.spec import JobSpec
from jobs.status import JobStatus
from jobs.storage.events import write_event
from jobs.storage.tables import JobAttempt, engine_for
from sft.checkpoints.folders import publish_checkpoint, stage_checkpoint
from sft.config import SFTConfig

CONFIG = SFTConfig(base_model="m", dataset_name="d", dataset_format="auto", save_total_limit=5)
FILES = {"model.safetensors": bytes(range(256)) * 5000, "tokenizer.json": b"{}", "config.json": b"{}"}


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", store=(tmp_path / "shared").as_uri())


@pytest.fixture
def job(settings):
    job_id = uuid4()
    merged = job_folder(settings, CONFIG, job_id) / "merged"
    result = {"model_name": "support", "model_version": "7", "merged_path": str(merged)}
    return Job(
        job_id, "n", JobStatus.COMPLETED, "normal", JobSpec(config=CONFIG), {}, None, None, None, result=result,
        output_path=str(merged.with_name("adapter")),
    )  # fmt: skip


def write(folder, files=FILES):
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def unpack(download):
    with tarfile.open(fileobj=io.BytesIO(b"".join(download.archive.read()))) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


def test_the_merged_model_comes_from_its_folder_and_else_from_the_store(settings, job, tmp_path):
    with pytest.raises(AdapterNotFound, match="nor in the store"):
        prepare_download(settings, job, "merged")
    SharedStore.find(settings).put(owner_of(job.id), MERGED, write(tmp_path / "elsewhere"))
    far = prepare_download(settings, job, "merged")
    assert unpack(far) == FILES
    assert far.archive.name == "support-7-merged"
    write(job_folder(settings, CONFIG, job.id) / "merged")
    here = prepare_download(settings, job, "merged")
    assert here.sha256 == far.sha256
    assert all(member.path for member in here.archive.members)


def test_a_job_without_one_says_what_to_do(settings, job):
    with pytest.raises(AdapterNotFound, match="save_merged_model"):
        prepare_download(settings, replace(job, result={**job.result, "merged_path": None}), "merged")
    failed = {"merged_path": None, "merge_error": "merging needs 9.9 GB"}
    with pytest.raises(AdapterNotFound, match=r"has an adapter and no merged model: merging needs 9\.9 GB"):
        prepare_download(settings, replace(job, result={**job.result, **failed}), "merged")
    with pytest.raises(AdapterNotFound, match="TUNEYARD_STORE"):
        prepare_download(settings.model_copy(update={"store": None}), job, "merged")


@pytest.mark.stack
def test_checkpoints_are_those_in_the_store_and_those_that_are_still_where_the_job_is(stack, settings, job, tmp_path):
    """`complete` never promises what no machine can resume from."""
    engine, store = engine_for(stack.database_url), SharedStore.find(settings)
    with engine.begin() as connection:
        connection.execute(JobAttempt.__table__.insert().values(job_id=job.id, host="second"))
        for step, host in [(10, "first"), (20, "first"), (30, "second")]:
            write_event(connection, job.id, "checkpoint", {"step": step, "path": f"/x/checkpoint-{step}", "host": host})
    store.put(owner_of(job.id), checkpoint_name(10), write(tmp_path / "ten"))

    found = list_checkpoints(settings, engine, job)
    assert [(one["step"], one["complete"], one["bytes"] is None) for one in found] == [
        (10, True, False), (20, False, True), (30, True, True)
    ]  # fmt: skip
    assert found[0]["path"] == f"{settings.store}/{owner_of(job.id)}/checkpoints/checkpoint-10"

    staged = stage_checkpoint(checkpoint_folder(settings, CONFIG, job.id), 40)
    (staged / "a").write_bytes(b"a")
    publish_checkpoint(staged)  # on the machine that answers
    assert [(one["step"], one["complete"]) for one in list_checkpoints(settings, engine, job)] == [
        (10, True),
        (40, True),
    ]
