"""Architectures of many kinds, each trained, saved and loaded again: the short form of `make sweep`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.sweep.case import run_case

TRAINED = ["llama4_text", "gemma3", "llava", "qwen3_next", "falcon_h1", "gpt_oss", "bloom", "bart"]
REFUSED = ["bert", "florence2"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("model_type", TRAINED)
def test_what_is_trained_loads_with_the_loss_that_was_measured(model_type: str, tmp_path: Path) -> None:
    outcome = run_case(model_type, tmp_path)
    assert outcome.end == "trained", outcome


@pytest.mark.parametrize("model_type", ["qwen2_moe", "granitemoe"])
def test_adapted_experts_load_with_the_loss_that_was_measured(model_type: str, tmp_path: Path) -> None:
    outcome = run_case(model_type, tmp_path, lora_target_modules=["all-linear", "experts"], lora_dropout=0.0)
    assert outcome.end == "trained", outcome
    assert "0 warnings" in outcome.words


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_is_no_causal_language_model_is_refused(model_type: str, tmp_path: Path) -> None:
    outcome = run_case(model_type, tmp_path)
    assert (outcome.end, outcome.code) == ("refused", "model_not_supported"), outcome
