"""A serving check's process over adapters that a real training saved, and over what can go wrong with them."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file, save_file
from torch import nn

from jobs.project import PROJECT_ROOT
from sft.config import SFTConfig
from sft.data.tokenization import prepare
from sft.errors import ResultUnusable
from sft.serving.process import Request, ask
from sft.serving.samples import choose_rows, read_samples
from sft.serving.verdict import Verdict, judge
from sft.training.session import TrainingSession
from tests.conftest import wait_until
from tests.tiny_models import save_tiny_llama

WEIGHTS = "adapter_model.safetensors"
VALUES: dict[str, Any] = {
    "base_model": "tiny",
    "dataset_name": "rows",
    "dataset_format": "alpaca",
    "template_name": "chatml",
    "lora_r": 8,
    "batch_size": 4,
    "max_seq_length": 128,
    "num_epochs": 12.0,
    "learning_rate": 2e-2,
    "mixed_precision": "none",
    "validation_split": 0.25,
}


class Trained:
    """A training that has learned to say yes, its saved adapter, and the request to check it."""

    def __init__(self, folder: Path) -> None:
        self.model = save_tiny_llama(folder / "model")
        data = folder / "rows.json"
        data.write_text(json.dumps([{"instruction": f"Is it {n}?", "output": "yes"} for n in range(24)]))
        config = SFTConfig.from_dict(VALUES)
        rows = prepare(config, self.model, data, folder / "cache")
        self.session = TrainingSession(config, rows, self.model, folder / "out")
        self.session.train()
        self.adapter = self.session.save_adapter(folder / "out" / "adapter")
        chosen = choose_rows(rows.load_eval(), config.max_seq_length)  # type: ignore[arg-type]
        self.samples = read_samples(chosen, data, config)
        self.measured = self.session.measure_rows(chosen)

    def request(self, adapter: Path, seconds: float = 120.0, **changes: Any) -> Request:
        made = Request(
            adapter, self.model, "AutoModelForCausalLM", "float32", "cpu", self.samples, True, 2**31, seconds
        )
        return made._replace(**changes)

    def check(self, adapter: Path, **changes: Any) -> Verdict:
        request = self.request(adapter, **changes)
        return judge(request, ask(request), self.measured["loss"], [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def change(trained: Trained, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the adapter, some of whose files are written anew."""

    def copy(**texts: str) -> Path:
        folder = shutil.copytree(trained.adapter, tmp_path / "changed", dirs_exist_ok=True)
        for name, text in texts.items():
            (folder / name.replace("_JINJA", ".jinja")).write_text(text, encoding="utf-8")
        return folder

    return copy


def test_an_adapter_as_it_was_trained_passes(trained: Trained) -> None:
    replies = ask(trained.request(trained.adapter))
    assert replies.problem is None
    verdict = judge(trained.request(trained.adapter), replies, trained.measured["loss"], [])

    assert (verdict.status, verdict.reason) == ("passed", None)
    assert (verdict.prompts, verdict.equal_prompts) == (4, 4)
    assert (verdict.answers, verdict.stopped_answers) == (3, 3)
    assert verdict.served_loss == pytest.approx(trained.measured["loss"], rel=1e-4)
    assert trained.measured["device"] == "cpu"
    # Nothing of ours that could change a model is in the process.
    assert replies.told[-1]["ours"] == ["sft.confinement", "sft.errors", "sft.serving"]


def test_a_broken_template_and_a_lacking_weight_are_told(trained: Trained, change: Callable[..., Path]) -> None:
    template = (trained.adapter / "chat_template.jinja").read_text(encoding="utf-8")
    folder = change(chat_template_JINJA=template.replace("<|im_start|>", "<|im_start|> "))
    weights = load_file(folder / WEIGHTS)
    lacking = sorted(weights)[0]
    del weights[lacking]
    save_file(weights, folder / WEIGHTS)

    verdict = trained.check(folder)

    assert verdict.status == "warning"
    assert (verdict.prompts, verdict.equal_prompts) == (4, 0)
    text = " | ".join(verdict.findings)
    assert "4 of 4 prompts, as the saved tokenizer writes them, do not have the token ids trained on (row " in text
    assert f"the saved file lacks 1 weights: {lacking}" in text


def test_another_tokenizer_and_an_untrained_model_that_never_stops_are_told(
    trained: Trained, change: Callable[..., Path]
) -> None:
    folder = change()
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokens["model"]["merges"] = tokens["model"]["merges"][:5]
    (folder / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    weights = {name: weight * 0 for name, weight in load_file(folder / WEIGHTS).items()}  # the random base answers
    save_file(weights, folder / WEIGHTS)

    verdict = trained.check(folder)

    text = " | ".join(verdict.findings)
    assert "prompts, as the saved tokenizer writes them, do not have the token ids trained on" in text
    assert "of 3 answers did not end by themselves within 64 tokens" in text
    assert "with the saved files and was" in text  # the loss
    assert 2 * verdict.stopped_answers < verdict.answers == 3


def test_files_that_cant_be_loaded_are_an_error(trained: Trained, change: Callable[..., Path]) -> None:
    folder = change()
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 100)
    with pytest.raises(ResultUnusable, match="PEFT can't load the saved adapter into its base model"):
        trained.check(folder)


def test_a_check_that_takes_too_long_is_ended(trained: Trained) -> None:
    before = psutil.Process().children()  # of other tests
    verdict = trained.check(trained.adapter, seconds=0.5)
    assert verdict.status == "skipped"
    assert verdict.reason == "it took more than 0.5 s (TUNEYARD_SERVING_CHECK_SECONDS)"
    assert [child for child in psutil.Process().children() if child not in before] == []


def test_the_freed_model_takes_no_memory_and_the_merge_still_works(trained: Trained, tmp_path: Path) -> None:
    model: nn.Module = trained.session.trainer.model
    assert sum(parameter.nbytes for parameter in model.parameters()) > 0
    trained.session.free_model()
    assert sum(parameter.nbytes for parameter in model.parameters()) == 0
    assert (trained.session.save_merged(trained.adapter) / "model.safetensors").is_file()


KILLED = """
import sys
from pathlib import Path
from sft.serving.process import Request, ask
folder, model = map(Path, sys.argv[1:])
ask(Request(folder, model, "AutoModelForCausalLM", "float32", "cpu", [], True, None, 600.0))
"""


def test_the_process_ends_with_the_one_that_started_it(trained: Trained) -> None:
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    command = [sys.executable, "-c", KILLED, str(trained.adapter), str(trained.model)]
    with subprocess.Popen(command, env=environment) as parent:
        started = psutil.Process(parent.pid)
        wait_until(lambda: bool(started.children()), 60)
        (child,) = started.children()
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 60)
