"""What the tests of `sft` share: a tiny model and tokenizer, small configurations, rows in files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sft.config import SFTConfig
from sft.data.tokenization import PreparedData, prepare
from sft.training.session import TrainingSession
from tests.tiny_models import build_tokenizer, save_tiny_llama


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small gain nothing from a second thread, and lose much by it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with grouped-query attention and a ChatML tokenizer, saved as a model folder."""
    return save_tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A fresh tokenizer, to be changed at will."""
    return build_tokenizer()


@pytest.fixture
def make_config() -> Callable[..., SFTConfig]:
    """A small, deterministic configuration; keywords change single fields."""

    def make(**fields: Any) -> SFTConfig:
        defaults = {
            "base_model": "tiny",
            "dataset_name": "rows",
            "dataset_format": "alpaca",
            "lora_r": 4,
            "lora_dropout": 0.0,
            "batch_size": 2,
            "gradient_accumulation_steps": 1,
            "max_seq_length": 128,
            "num_epochs": 1.0,
            "learning_rate": 1e-2,
            "mixed_precision": "none",
            "validation_split": 0.25,
            "logging_steps": 2,
        }
        return SFTConfig.from_dict(defaults | fields)

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as one JSON list into the test's folder, and tells where."""

    def write(rows: list[dict[str, Any]], name: str = "rows.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(rows), encoding="utf-8")
        return path

    return write


@pytest.fixture
def alpaca_file(write_rows: Callable[..., Path]) -> Path:
    """Twelve rows of different lengths."""
    numbers = [" ".join(str(i) for i in range(n + 1)) for n in range(12)]
    return write_rows([{"instruction": f"Count to {n}.", "output": output} for n, output in enumerate(numbers)])


@pytest.fixture
def open_session(
    model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: Callable[..., SFTConfig]
) -> Callable[..., TrainingSession]:
    """A session over the twelve rows of `alpaca_file`; keywords change the configuration."""

    def open_it(
        output: str = "out", on_event: Any = None, model: Path = model_path, data: Path = alpaca_file, **fields: Any
    ) -> TrainingSession:
        config = make_config(**fields)
        rows = prepare(config, model, data, tmp_path / "cache")
        return TrainingSession(config, rows, model, tmp_path / output, on_event)

    return open_it


@pytest.fixture
def rows(model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: Callable[..., SFTConfig]) -> PreparedData:
    """The twelve rows as a session with the plain configuration sees them."""
    return prepare(make_config(), model_path, alpaca_file, tmp_path / "cache")
