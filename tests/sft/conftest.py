"""A tiny tokenizer and a tiny random model, made here: nothing is downloaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sft.config import SFTConfig
from sft.templates import TEMPLATES

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "user assistant system You are a helpful assistant.",
    "What is the capital of France? The capital of France is Paris.",
    "Name three colours. Red, green and blue. Hello there, how are you today?",
] * 4


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with grouped-query attention and a ChatML tokenizer, saved as a model folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        pad_token_id=tokenizer.convert_tokens_to_ids("<|endoftext|>"),
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of some 300 tokens; `<|endoftext|>` ends a text, ChatML is the chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS[1:]})
    tokenizer.chat_template = TEMPLATES["chatml"].jinja
    return tokenizer


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
