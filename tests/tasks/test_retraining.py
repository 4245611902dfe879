"""What a look at an adapter's data compares, and the job that it would make."""

import json
from pathlib import Path

import pytest

from jobs.retrain_spec import RetrainSpec
from jobs.settings import Settings
from jobs.spec import JobSpec
from sft.config import SFTConfig
from sft.errors import DatasetNotFound, InvalidConfig
from tasks.dataset import resolve
from tasks.dataset_mix import DatasetMix, resolve_all
from tasks.dataset_version import DatasetVersion
from tasks.register import SPEC_TAG, RegisteredAdapter
from tasks.retraining import build_job, digest_job, look_at_data, read_job

LOOK = RetrainSpec(adapter_name="support")


@pytest.mark.parametrize("version", ["", "  ", "x" * 5000, 3, "\ud800"])
def test_a_version_that_can_be_none_is_refused_before_anything_is_looked_at(version):
    with pytest.raises(InvalidConfig, match=r"^dataset_version: must"):
        RetrainSpec.build(adapter_name="support", dataset_version=version)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, registry: str) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("home"), dataset_registry=registry)
    settings.data_root.mkdir()
    return settings


@pytest.fixture
def rows(settings: Settings) -> Path:
    file = settings.data_root / "rows.jsonl"
    write(file, 2)
    return file


def write(file: Path, count: int) -> None:
    file.write_text("".join(json.dumps({"prompt": f"{n}", "completion": "y"}) + "\n" for n in range(count)))


def make_config(dataset_name: object, **further: object) -> SFTConfig:
    plain = {"base_model": "tiny/llama", "dataset_name": dataset_name, "dataset_format": "auto"}
    return SFTConfig.from_dict(plain | further)


def register(dataset: DatasetVersion, config: SFTConfig, is_told: bool = True) -> RegisteredAdapter:
    """As the registry has it; earlier releases did not put the source down."""
    tags = {
        "dataset": dataset.name,
        "dataset_revision": dataset.revision or "",
        "dataset_commit": dataset.commit or "",
        "dataset_md5": dataset.md5,
        SPEC_TAG: JobSpec(config=config, metadata={"team": "a"}).model_dump_json(),
    }
    return RegisteredAdapter("support", "1", "", tags | ({"dataset_source": dataset.source} if is_told else {}))


@pytest.mark.parametrize("is_told", [True, False])
def test_a_file_is_looked_at_again_and_known_by_its_content(settings, rows, is_told):
    adapter = register(resolve("rows.jsonl", settings), make_config("rows.jsonl"), is_told)
    assert look_at_data(adapter, LOOK, settings).md5 == adapter.tags["dataset_md5"]
    write(rows, 3)
    dataset = look_at_data(adapter, LOOK.model_copy(update={"dataset_version": "main"}), settings)
    assert (dataset.rows, dataset.md5 == adapter.tags["dataset_md5"]) == (3, False)
    job = build_job(adapter, dataset, "the-run", settings)
    assert (job.config.dataset_name, job.adapter_name, job.metadata) == ("rows.jsonl", "support", {"team": "a"})
    assert job.made_by is not None
    assert (job.made_by.run_id, job.made_by.adapter_version) == ("the-run", "1")
    assert job.made_by.reason.startswith("rows.jsonl has changed since version 1 of support (md5 ")
    assert "made_by:retrain" in job.tags()


@pytest.mark.parametrize("is_told", [True, False])
def test_a_file_has_no_version_and_may_be_gone(settings, rows, is_told):
    adapter = register(resolve("rows.jsonl", settings), make_config("rows.jsonl"), is_told)
    with pytest.raises(InvalidConfig, match=r"dataset_version 'v1.0' .* the file rows.jsonl, .* leave dataset_version"):
        look_at_data(adapter, LOOK.model_copy(update={"dataset_version": "v1.0"}), settings)
    rows.unlink()
    with pytest.raises(DatasetNotFound, match=r"rows.jsonl"):
        look_at_data(adapter, LOOK, settings)


@pytest.mark.parametrize("is_told", [True, False])
@pytest.mark.parametrize("name", ["handbook", "handbook@v1.0"])
def test_a_dataset_of_the_registry_is_looked_at_on_its_main_branch_or_as_told(settings, name, is_told):
    adapter = register(resolve(name, settings), make_config(name), is_told)
    newest = look_at_data(adapter, LOOK, settings)
    assert newest.md5 == resolve("handbook@main", settings).md5
    for version in ("v1.0", "handbook@v1.0"):
        told = look_at_data(adapter, LOOK.model_copy(update={"dataset_version": version}), settings)
        assert told.md5 == resolve("handbook@v1.0", settings).md5
    for version, problem in (
        ("other@v1.0", "names the dataset 'other', but support was trained on 'handbook'"),
        ("handbook@", "'handbook@' is not of the form name@revision"),
    ):
        with pytest.raises(InvalidConfig, match=problem):
            look_at_data(adapter, LOOK.model_copy(update={"dataset_version": version}), settings)
    assert build_job(adapter, newest, "r", settings).config.dataset_name == f"handbook@{newest.commit}"


def test_a_file_that_now_hides_the_dataset_is_not_taken_for_it(settings):
    adapter = register(resolve("handbook", settings), make_config("handbook"))
    file = settings.data_root / "handbook"
    file.mkdir()
    write(file / "train.jsonl", 1)
    assert look_at_data(adapter, LOOK, settings).source == "dvc"


@pytest.mark.parametrize("is_told", [True, False])
def test_a_dataset_of_the_hub_is_asked_for_again(settings, is_told, monkeypatch):
    commit = "c" * 40
    on_hub = DatasetVersion("org/rows", commit, commit, "0" * 32, Path("/x"), None, 2, "hub", "https://hub/rows")
    adapter = register(on_hub, make_config("org/rows"), is_told)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DatasetNotFound, match="org/rows not found"):
        look_at_data(adapter, LOOK, settings)
    assert build_job(adapter, on_hub, "r", settings).config.dataset_name == "org/rows"


def register_mix(mix: DatasetMix, config: SFTConfig) -> RegisteredAdapter:
    tags = mix.lineage() | {SPEC_TAG: JobSpec(config=config).model_dump_json()}
    return RegisteredAdapter("support", "1", "", tags)


def test_any_dataset_of_a_mix_that_has_changed_makes_a_job(settings, rows):
    write(settings.data_root / "held.jsonl", 2)
    config = make_config(
        [{"name": "handbook@v1.0", "weight": 2}, "rows.jsonl"], validation_dataset="held.jsonl", max_samples=5
    )
    adapter = register_mix(resolve_all(config, settings), config)
    found = look_at_data(adapter, LOOK, settings)
    assert found.sources[0].md5 == resolve("handbook@main", settings).md5
    assert found.md5 != adapter.tags["dataset_md5"]
    job = build_job(adapter, found, "r", settings)
    named = [(source.name, source.weight) for source in job.config.sources]
    assert named == [(f"handbook@{found.sources[0].commit}", 2.0), ("rows.jsonl", 1.0)]
    assert (job.config.validation_dataset, job.config.validation_split) == ("held.jsonl", 0)

    newest = register_mix(found, job.config)
    assert look_at_data(newest, LOOK, settings).md5 == newest.tags["dataset_md5"]
    for name in ("rows.jsonl", "held.jsonl"):
        write(settings.data_root / name, 4)
        changed = look_at_data(newest, LOOK, settings)
        assert changed.md5 != newest.tags["dataset_md5"]
        newest = register_mix(changed, job.config)
    with pytest.raises(InvalidConfig, match=r"'v1.0' is a version of one dataset, but support was trained on several"):
        look_at_data(newest, LOOK.model_copy(update={"dataset_version": "v1.0"}), settings)


def test_two_versions_of_a_dataset_in_a_mix_stay_as_they_are(settings):
    config = make_config(["handbook@v1.0", "handbook@v1.1"])
    adapter = register_mix(resolve_all(config, settings), config)
    assert look_at_data(adapter, LOOK, settings).md5 == adapter.tags["dataset_md5"]


def test_data_settings_and_base_make_a_job_another_one(settings, rows):
    config, dataset = make_config("rows.jsonl"), resolve("rows.jsonl", settings)
    first = digest_job(config, dataset, settings)
    assert digest_job(make_config("rows.jsonl"), dataset, settings) == first
    assert digest_job(make_config("rows.jsonl", seed=7), dataset, settings) != first
    write(rows, 3)
    assert digest_job(config, resolve("rows.jsonl", settings), settings) != first
    model = settings.model_root / "tiny/llama"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    assert digest_job(config, dataset, settings) != first


def test_settings_that_are_no_longer_valid_are_named():
    spec = json.loads(JobSpec(config=make_config("rows.jsonl")).model_dump_json())
    spec["config"]["lora_r"] = 0
    adapter = RegisteredAdapter("support", "3", "", {SPEC_TAG: json.dumps(spec)})
    with pytest.raises(InvalidConfig, match=r"version 3 of support was trained with .*\(config.lora_r: .*got 0\)"):
        read_job(adapter)
