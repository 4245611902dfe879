"""No name that a job gives opens anything outside the folders it may use, whatever field it stands in."""

import contextlib
import functools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from huggingface_hub.constants import HF_HOME
from pydantic import ValidationError
from sqlalchemy import create_engine

from api.sft_request import TrainBody
from api.training_request import TrainingRequest
from jobs.base_models.announcing import AnnouncedFile
from jobs.base_models.catalog import describe_model, list_names
from jobs.base_models.uploads import IncomingModel
from jobs.folders import checkpoint_folder, job_folder
from jobs.own_data.file_uploads import CANCELLED, FileUploads
from jobs.preflight import Preflight
from jobs.results.records import list_checkpoints
from jobs.results.result_files import list_own_files
from jobs.service.files import find_file
from jobs.service.job import Job
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.status import JobStatus
from sft.config import SFTConfig
from sft.errors import InvalidConfig, TuneyardError
from sft.models.loading import find_model
from tasks.dataset import resolve
from tasks.dataset_mix import resolve_all
from tasks.dataset_registry import ensure_registry
from tasks.dataset_store import read_stored
from tasks.model import locate_adapter
from tasks.outage import keep_trying
from tests.hostile.paths import SECRET_FILES, hostile_paths, plant
from tests.hostile.watch import Watcher

JOB_ID = UUID("550e8400-e29b-41d4-a716-446655440000")
NOBODY = "http://127.0.0.1:9"
NO_DATABASE = create_engine("sqlite://")  # of jobs whose folder is here nothing is read from it
# Read for any name: DVC's settings, MLflow's credentials, the Hub's cache, time zones, how much memory there is.
ALSO_ALLOWED = [
    Path("/etc/xdg/dvc"), Path.home() / ".config/dvc", Path.home() / ".mlflow", Path(HF_HOME), Path("/dev/null"),
    Path("/usr/share/zoneinfo"), Path("/proc/meminfo"), Path("/proc/self/status"),
]  # fmt: skip
WATCHER = Watcher()


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A state folder with links that lead out of each root, and the default registry. The Hub is away."""
    home = tmp_path_factory.mktemp("hostile") / "state"
    plant(home)
    settings = Settings(home=home, mlflow_tracking_uri=NOBODY, prefect_api_url=NOBODY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.constants.ENDPOINT", NOBODY)
        patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        patch.setenv("MLFLOW_TRACKING_URI", NOBODY)
        patch.setattr("tasks.register.keep_trying", functools.partial(keep_trying, patience_seconds=0))
        patch.chdir(home)
        ensure_registry(settings)
        resolve("handbook@v1.0", settings)  # loads what is only loaded on first use
        with contextlib.suppress(TuneyardError):
            find_model("no/body", settings.model_root)
        yield settings


def values_of(settings: Settings) -> list[str]:
    return hostile_paths(settings.home)


def make_config(**values: Any) -> SFTConfig:
    plain = {"base_model": "tiny/llama", "dataset_name": "handbook@v1.0", "dataset_format": "alpaca"}
    return SFTConfig.from_dict(plain | values)


def make_job(config: SFTConfig, output_path: str) -> Job:
    """A completed job whose report says that its adapter is there."""
    made = JobSpec(config=config)
    plain: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    return Job(**plain | {"id": JOB_ID, "status": JobStatus.COMPLETED, "spec": made, "output_path": output_path})


def try_output_dir(settings: Settings, value: str) -> None:
    config = make_config(output_dir=value)
    folder = job_folder(settings, config, JOB_ID)
    (folder / "checkpoints/checkpoint-1").mkdir(parents=True, exist_ok=True)
    assert list_checkpoints(settings, NO_DATABASE, make_job(config, f"{value}/adapter"))


def try_checkpoint_dir(settings: Settings, value: str) -> None:
    config = make_config(checkpoint_dir=value)
    folder = checkpoint_folder(settings, config, JOB_ID)
    (folder / "checkpoint-1").mkdir(parents=True, exist_ok=True)
    assert list_checkpoints(settings, NO_DATABASE, make_job(config, "x"))


def try_output_path(settings: Settings, value: str) -> None:
    assert list_own_files(settings, make_job(make_config(), value), value) == []
    outside = str(settings.home.parent / "outside")
    assert list_own_files(settings, make_job(make_config(output_dir=value), outside), outside) == []


def try_base_model(settings: Settings, value: str) -> None:
    find_model(make_config(base_model=value).base_model, settings.model_root, settings.allowed_model_roots)


def try_dataset_name(settings: Settings, value: str) -> None:
    resolve_all(make_config(dataset_name=value), settings)


def try_dataset_of_several(settings: Settings, value: str) -> None:
    resolve_all(make_config(dataset_name=[value]), settings)


def try_validation_dataset(settings: Settings, value: str) -> None:
    (settings.data_root / "plain.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    resolve_all(make_config(dataset_name="plain.jsonl", validation_dataset=value), settings)


def try_revision(settings: Settings, value: str) -> None:
    resolve_all(make_config(dataset_name=f"handbook@{value}"), settings)


def try_split(settings: Settings, value: str) -> None:
    read_stored(next((settings.home / "datasets").glob("*.dir")), make_config(dataset_split=value).dataset_split)


def try_local_split(settings: Settings, value: str) -> None:
    folder = settings.data_root / "plain"
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    resolve("plain", settings, make_config(dataset_split=value).dataset_split)


def try_adapter_path(settings: Settings, value: str) -> None:
    adapter = make_config(adapter_path=value).adapter_path
    locate_adapter(str(adapter), settings, settings.output_root / str(JOB_ID))


def try_lora_version(settings: Settings, value: str) -> None:
    config = TrainingRequest(lora_name="support", lora_version=value).to_spec("handbook").config
    locate_adapter(str(config.adapter_path), settings, settings.output_root / str(JOB_ID))


def try_shown_model(settings: Settings, value: str) -> None:
    for name in list_names(settings):
        describe_model(name, settings)
    describe_model(value, settings)


def try_uploaded_model(settings: Settings, value: str) -> None:
    IncomingModel.begin(value, announce_model(), None, settings).remove()


def try_uploaded_file(settings: Settings, value: str) -> None:
    upload = IncomingModel.begin("up/plain", announce_model(), None, settings)
    try:
        with upload.receiving(value, 0):
            pass
    finally:
        upload.remove()
    IncomingModel.begin("up/plain", announce_model(value), None, settings).remove()


def try_upload_id(settings: Settings, value: str) -> None:
    IncomingModel.find(value, None, settings).remove()


def try_file_id(settings: Settings, value: str) -> None:
    find_file(settings, value)


def try_file_upload_id(settings: Settings, value: str) -> None:
    FileUploads(settings.home, 1, 1000).get(value)


def try_part_id(settings: Settings, value: str) -> None:
    uploads = FileUploads(settings.home, 1, 1000)
    upload = uploads.begin(value or "rows.jsonl", 1)
    try:
        uploads.join(upload, [value], None, uploads.folder / "whole")
    finally:
        uploads.end(upload, CANCELLED)


def announce_model(*more: str) -> list[AnnouncedFile]:
    return [AnnouncedFile(path, 1, "0" * 64) for path in ("config.json", "model.safetensors", *more)]


def test_what_is_opened_outside_is_seen(settings: Settings) -> None:
    outside = settings.home.parent / "outside"
    with WATCHER.watching(settings.home) as found:
        (settings.home / "link" / "secret.json").exists()
        (settings.data_root / "linked.jsonl").read_text()
        list((settings.model_root / "link").iterdir())
        (outside / "new").mkdir()
        (outside / "new").rename(outside / "newer")
        shutil.rmtree(outside / "newer")
    seen = {event.split()[0] for event in found}
    assert seen >= {"open", "os.listdir", "os.mkdir", "os.rename", "shutil.rmtree", "os.rmdir"}


FIELDS: list[Callable[[Settings, str], None]] = [
    try_output_dir, try_checkpoint_dir, try_output_path, try_base_model, try_dataset_name, try_revision,
    try_dataset_of_several, try_validation_dataset, try_split, try_local_split, try_adapter_path, try_lora_version,
    try_shown_model, try_uploaded_model, try_uploaded_file, try_upload_id,
    try_file_id, try_file_upload_id, try_part_id,
]  # fmt: skip


@pytest.mark.parametrize("use", FIELDS, ids=lambda use: use.__name__.removeprefix("try_"))
def test_nothing_outside_is_opened(
    settings: Settings, use: Callable[[Settings, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    values = values_of(settings)
    strange, reached = [], []
    for value in values:
        with WATCHER.watching(settings.home, scratch, *ALSO_ALLOWED) as found:
            try:
                use(settings, value)
            except TuneyardError as error:
                reached += [value for name in SECRET_FILES if f'"{name}' in str(error)]
            except ValidationError:
                pass  # what the REST API answers with 422
            except OSError as error:
                strange.append(f"{value[:80]!r}: {error!r}")
        strange += [f"{value[:80]!r}: {what}" for what in found]
    assert len(values) >= 100
    assert strange == []
    assert reached == []


LOOKED_AT = ("base_model", "dataset_name", "revision", "adapter_path", "output_dir", "checkpoint_dir")


@pytest.mark.parametrize("field", LOOKED_AT)
def test_nothing_outside_is_opened_before_a_submission(
    settings: Settings, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    looking = Preflight(settings, seconds=20)
    looking.run(JobSpec(config=make_config(base_model="no/body")))  # loads what is only loaded on first use
    strange = []
    for value in values_of(settings):
        name, given = ("dataset_name", f"handbook@{value}") if field == "revision" else (field, value)
        with contextlib.suppress(InvalidConfig):
            spec = JobSpec.build(config=make_config(**{name: given}))
            with WATCHER.watching(settings.home, *ALSO_ALLOWED) as found:
                looking.run(spec)
            strange += [f"{value[:80]!r}: {what}" for what in found]
    assert strange == []


NAMES = ("lora_name", "save_name")  # of the registry: letters, digits, dots, hyphens and underscores
PLACES = ("model_name", "dataset_version", "adapter_path", "output_dir", "checkpoint_dir", "run_name", "dataset_split")
LABELS = ("wandb_project", "wandb_entity", "wandb_run_name", "template")


@pytest.mark.parametrize("field", [*NAMES, *PLACES, *LABELS])
def test_both_dialects_open_nothing_and_change_no_name(settings: Settings, field: str) -> None:
    """A name is refused, or stands in the job as it came; in the registry only a plain one can stand."""
    plain = {"base_model": "tiny/llama", "dataset_name": "handbook@v1.0", "dataset_format": "alpaca"}
    ours = {"model_name": "base_model", "dataset_version": "dataset_name", "template": "template_name"}.get(
        field, field
    )
    refused = []
    for value in values_of(settings):
        with WATCHER.watching() as found:
            try:
                training = TrainingRequest(**{field: value}).to_spec("handbook")
                if field in NAMES:
                    sft = TrainBody(config=plain, adapter_name=value).to_spec(None)
                else:
                    sft = TrainBody(config=plain | {ours: value}).to_spec(None)
            except (ValidationError, TuneyardError):
                refused.append(value)
                continue
        assert found == []
        for spec in (training, sft):
            assert re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]*", spec.registered_name)
            if field not in NAMES:
                assert value.strip() in str(getattr(spec.config, ours)).removeprefix("handbook@")
    assert "x\0y" in refused
    if field in NAMES:
        assert len(refused) > 150
