"""Several datasets of a job: versions are found, recorded and tokenized, and errors name the place in the list."""

import json
from pathlib import Path

import pytest

from jobs.settings import Settings
from sft.config import SFTConfig
from sft.data.mixing import MixedData
from sft.data.tokenization import prepare
from sft.errors import DatasetNotFound, InvalidConfig
from tasks.dataset_mix import DatasetMix, prepare_all, resolve_all
from tests.tiny_models import save_tiny_llama


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, registry: str) -> Settings:
    settings = Settings(home=tmp_path_factory.mktemp("home"), dataset_registry=registry)
    save_tiny_llama(settings.model_root / "tiny")
    write(settings.data_root / "rows.jsonl", 8)
    write(settings.data_root / "held.jsonl", 3)
    write(settings.data_root / "folder" / "train.jsonl", 4)
    write(settings.data_root / "folder" / "test.jsonl", 2)
    return settings


def write(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"prompt": f"{path} {n}", "completion": "y"}) + "\n" for n in range(count)))


def configure(**fields: object) -> SFTConfig:
    plain = {"base_model": "tiny", "dataset_format": "auto", "template_name": "chatml", "max_samples": 20}
    return SFTConfig.from_dict(plain | fields)


def resolve_mix(settings: Settings, **fields: object) -> DatasetMix:
    found = resolve_all(configure(**fields), settings)
    assert isinstance(found, DatasetMix)
    return found


def prepare_mix(settings: Settings, **fields: object) -> MixedData:
    config = configure(**fields)
    rows = prepare_all(
        config,
        resolve_all(config, settings),
        lambda own, version: prepare(
            own, settings.model_root / "tiny", version.train_file, settings.home / "tokenized", version.eval_file
        ),
    )
    assert isinstance(rows, MixedData)
    return rows


def test_each_dataset_is_resolved_to_its_exact_version(settings: Settings) -> None:
    mix = resolve_mix(settings, dataset_name=["handbook@v1.0", {"name": "rows.jsonl", "weight": 0.5}])
    handbook, rows = mix.sources
    assert handbook == resolve_all(configure(dataset_name="handbook@v1.0"), settings)
    assert (rows.source, rows.rows, mix.weights) == ("file", 8, (1.0, 0.5))
    assert mix.reference == "handbook@v1.0, 0.5 x rows.jsonl"
    lineage = mix.lineage()
    assert (lineage["dataset"], lineage["dataset_source"]) == ("handbook, rows.jsonl", "mix")
    recorded = json.loads(lineage["dataset_versions"])
    assert [(one["name"], one["commit"], one["md5"], one["weight"]) for one in recorded] == [
        ("handbook", handbook.commit, handbook.md5, 1.0),
        ("rows.jsonl", None, rows.md5, 0.5),
    ]
    other = resolve_mix(settings, dataset_name=["handbook@v1.0", {"name": "rows.jsonl", "weight": 0.6}])
    assert (
        other.md5
        != mix.md5
        == resolve_mix(settings, dataset_name=["handbook@v1.0", {"name": "rows.jsonl", "weight": 0.5}]).md5
    )


def test_a_dataset_to_evaluate_on_replaces_what_the_others_hold_out(settings: Settings) -> None:
    mix = resolve_mix(settings, dataset_name="folder", validation_dataset="held.jsonl")
    assert [(one.train_file.name, one.eval_file) for one in mix.versions] == [
        ("train.jsonl", None),
        ("held.jsonl", None),
    ]
    rows = prepare_mix(settings, dataset_name="folder", validation_dataset="held.jsonl")
    assert [rows.stats[side]["used"] for side in ("train", "eval")] == [4, 3]  # type: ignore[index]
    assert any("folder: not used: test.jsonl" in message for message in rows.warnings)


def test_of_a_dataset_to_evaluate_on_the_held_out_file_is_taken(settings: Settings) -> None:
    mix = resolve_mix(settings, dataset_name="rows.jsonl", validation_dataset=["folder", "held.jsonl"])
    assert [(one.train_file.name, one.rows) for one in mix.validation] == [("test.jsonl", 2), ("held.jsonl", 3)]
    rows = prepare_mix(settings, dataset_name="rows.jsonl", validation_dataset=["folder", "held.jsonl"])
    assert {label: len(part) for label, part in rows.load_eval_parts().items()} == {"folder": 2, "held.jsonl": 3}
    assert len(rows.load_train()) == 8


def test_rows_that_one_dataset_alone_would_have_are_those_of_the_mix(settings: Settings) -> None:
    rows = prepare_mix(settings, dataset_name=["folder", "rows.jsonl"], validation_split=0.25)
    alone = prepare_mix(settings, dataset_name=["folder"], validation_split=0.25)
    assert rows.parts[0].rows.folder == alone.parts[0].rows.folder
    assert alone.was_cached
    assert rows.stats["eval"]["used"] == 2 + len(rows.load_eval_parts()["rows.jsonl"])  # type: ignore[index]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dataset_name": ["rows.jsonl", "./rows.jsonl"]}, r"^dataset_name\.1: './rows.jsonl' is the same content as"),
        ({"dataset_name": ["held.jsonl", "handbook@v1.1", "handbook@main"]}, r"^dataset_name\.2: 'handbook@main' is"),
        ({"dataset_name": ["held.jsonl", "copied.jsonl"]}, r"^dataset_name\.1: 'copied.jsonl' is the same content as"),
        ({"dataset_name": "rows.jsonl", "validation_dataset": ["held.jsonl", "linked.jsonl"]}, "give it once"),
    ],
)
def test_two_names_of_the_same_content_are_refused(settings: Settings, fields: dict[str, object], words: str) -> None:
    link, held = settings.data_root / "linked.jsonl", settings.data_root / "held.jsonl"
    (settings.data_root / "copied.jsonl").write_bytes(held.read_bytes())
    if not link.is_symlink():
        link.symlink_to("held.jsonl")
    with pytest.raises(InvalidConfig, match=words):
        resolve_all(configure(**fields), settings)


def test_a_file_that_is_trained_on_is_not_evaluated_on(settings: Settings) -> None:
    with pytest.raises(InvalidConfig, match=r"^validation_dataset\.1: 'rows.jsonl' is trained on and has no held-out"):
        resolve_mix(settings, dataset_name=["folder", "rows.jsonl"], validation_dataset=["folder", "rows.jsonl"])


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"dataset_name": ["rows.jsonl", "handbook@v9.9"]}, DatasetNotFound, r"^dataset_name\.1: .*v9\.9"),
        ({"dataset_name": ["rows.jsonl", "nothing"]}, DatasetNotFound, r"^dataset_name\.1: dataset nothing not found"),
        ({"dataset_name": ["../rows.jsonl"]}, InvalidConfig, r"^dataset_name\.0: '../rows.jsonl' leads outside"),
        ({"dataset_name": "rows.jsonl", "validation_dataset": "x@v1"}, DatasetNotFound, r"^validation_dataset: .*v1"),
    ],
)  # fmt: skip
def test_a_dataset_that_is_not_there_is_named_by_its_place(settings, fields, error, words) -> None:
    with pytest.raises(error, match=words):
        resolve_all(configure(**fields), settings)
