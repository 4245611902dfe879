"""The demo dataset: what its rows are, and that the recipe refuses facts that could not be checked."""

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.settings import PROJECT_ROOT, Settings
from sft.config import SFTConfig

BUILD = PROJECT_ROOT / "datasets/build.py"
FACTS = PROJECT_ROOT / "datasets/handbook/facts.yaml"


def build(facts: Path, version: str, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, BUILD, facts, "--version", version, "--out", out]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)


def read_rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[dict[str, str]]]]:
    """Rows by version and split, made by the script itself."""
    built = {}
    for version in ("v1.0", "v1.1"):
        out = tmp_path_factory.mktemp(version)
        build(FACTS, version, out).check_returncode()
        built[version] = {split: read_rows(out / f"{split}.jsonl") for split in ("train", "eval")}
    return built


def test_each_fact_gives_five_rows_to_train_on_and_one_held_out(versions: Any) -> None:
    counts = {version: (len(rows["train"]), len(rows["eval"])) for version, rows in versions.items()}
    assert counts == {"v1.0": (250, 50), "v1.1": (335, 67)}


@pytest.mark.parametrize("version", ["v1.0", "v1.1"])
def test_a_held_out_question_is_never_trained_on(versions: Any, version: str) -> None:
    def simplify(question: str) -> str:
        return " ".join(question.lower().rstrip("?.").split())

    trained = {simplify(row["instruction"]) for row in versions[version]["train"]}
    held_out = {simplify(row["instruction"]) for row in versions[version]["eval"]}
    assert (len(trained), len(held_out)) == (len(versions[version]["train"]), len(versions[version]["eval"]))
    assert not trained & held_out
    assert {row["key"] for row in versions[version]["eval"]} == {row["key"] for row in versions[version]["train"]}


def test_every_answer_contains_its_key_and_no_question_gives_it_away(versions: Any) -> None:
    for row in versions["v1.1"]["train"] + versions["v1.1"]["eval"]:
        assert set(row) == {"instruction", "input", "output", "key"}
        assert row["key"] in row["output"]
        assert row["key"].lower() not in row["instruction"].lower()
        assert len(row["output"].split()) <= 25


def test_the_newer_version_only_adds_facts(versions: Any) -> None:
    old, new = ({row["instruction"] for row in versions[version]["train"]} for version in ("v1.0", "v1.1"))
    assert old < new


def test_neighbouring_train_rows_have_different_answers(versions: Any) -> None:
    answers = [row["output"] for row in versions["v1.1"]["train"]]
    assert all(one != other for one, other in itertools.pairwise(answers))


def test_the_facts_about_defaults_are_true(versions: Any) -> None:
    """Held against the configuration itself: a changed default must change the handbook."""
    default = {name: field.default for name, field in SFTConfig.model_fields.items()}
    expected = {
        "What is the default lora_r in Tuneyard?": "The default lora_r is {lora_r}.",
        "What is the default lora_alpha in Tuneyard?": "The default lora_alpha is {lora_alpha}.",
        "What is the default lora_dropout in Tuneyard?": "The default lora_dropout is {lora_dropout}.",
        "What is the default validation_split in Tuneyard?": "The default validation_split is {validation_split}.",
        "What is the default warmup_ratio in Tuneyard?": "The default warmup_ratio is {warmup_ratio}.",
        "What is the default scheduler_type in Tuneyard?": "The default scheduler_type is {scheduler_type}.",
        "What is the default max_grad_norm in Tuneyard?": "The default max_grad_norm is {max_grad_norm}.",
        "What is the default batch size of SFTConfig?": "SFTConfig has a batch size of {batch_size}.",
        "What is the default seed in Tuneyard?": "The default seed is {seed}.",
        "How often does Tuneyard save a checkpoint?": "Tuneyard saves a checkpoint every {save_steps} steps.",
    }
    answers = {row["instruction"]: row["output"] for row in versions["v1.1"]["train"]}
    for question, answer in expected.items():
        assert answers[question] == answer.format(**default)
    assert (default["learning_rate"], default["num_epochs"], default["save_total_limit"]) == (2e-4, 3, 3)


def test_the_facts_about_addresses_and_names_are_true(versions: Any) -> None:
    default = {name: field.default for name, field in Settings.model_fields.items()}
    answers = {row["instruction"]: row["output"] for row in versions["v1.1"]["eval"]}
    expected = {
        "What port does the Tuneyard API listen on?": "The Tuneyard API listens on port {api_port}.",
        "How is the work pool named that runs Tuneyard jobs?": "Tuneyard jobs run in a work pool called {work_pool}.",
        "How is the demo dataset named in Tuneyard?": "The demo dataset is called {default_dataset}.",
    }
    for question, answer in expected.items():
        assert answers[question] == answer.format(**default)
    for name in ("Prefect", "MLflow"):
        port = default[f"{name.lower()}_port"]
        answer = answers[f"Which port do I open to see Tuneyard's {name} page?"]
        assert answer == f"The {name} page of Tuneyard is on port {port}."
    targets = {line.split(":")[0] for line in (PROJECT_ROOT / "Makefile").read_text(encoding="utf-8").splitlines()}
    named = {key.removeprefix("make ") for row in versions["v1.1"]["eval"] if (key := row["key"]).startswith("make ")}
    assert named == {"demo", "test", "serve", "stop", "status"} <= targets


def test_an_unknown_version_is_refused_by_name(tmp_path: Path) -> None:
    failed = build(FACTS, "v7.0", tmp_path / "out")
    assert failed.returncode == 1
    assert "version must be one of v1.0, v1.1, got v7.0" in failed.stderr
    assert not (tmp_path / "out").exists()


def test_an_answer_without_its_key_is_refused(tmp_path: Path) -> None:
    facts = [{"since": "v1", "key": "blue", "answer": "It is red.", "questions": ["Which?", "What?"]}]
    (tmp_path / "facts.yaml").write_text(yaml.safe_dump(facts), encoding="utf-8")
    failed = build(tmp_path / "facts.yaml", "v1", tmp_path / "out")
    assert "the answer must contain its key 'blue', got 'It is red.'" in failed.stderr
