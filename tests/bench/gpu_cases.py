"""What `make gpu-check` runs: models of real shapes with random weights, rows of text, and the cases."""

import importlib.util
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

from tests.tiny_models import build_tokenizer

WORDS = ("Paris", "France", "colours", "green", "assistant", "today", "capital", "three", "helpful", "there")


class Case(NamedTuple):
    """One training. `fields` are those of SFTConfig; `stock` names a way of TRL's own instead of Tuneyard's."""

    name: str
    model: str
    rows: str  # of ROWS
    fields: dict[str, Any]
    stock: str | None = None  # defaults, tuned or flash
    like: str | None = None  # the case of TRL's whose losses these must be
    is_tiny: bool = False

    @property
    def is_planned(self) -> bool:
        """Whether memory is planned too: each of ours, but one of the tiny ones alone, as a plan takes seconds."""
        return self.stock is None and (not self.is_tiny or self.name == "lora")


class Rows(NamedTuple):
    """Rows of text: words in a row from `fewest` to `most`, and rows of a batch."""

    fewest: int
    most: int
    batch: int


LORA: dict[str, Any] = {"lora_r": 16, "lora_dropout": 0.0}
CHECKPOINTING: dict[str, Any] = {"gradient_checkpointing": True}
NO_CHECKPOINTING: dict[str, Any] = {"gradient_checkpointing": False}


def list_shapes() -> dict[str, PretrainedConfig]:
    """The models' configurations by name."""
    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    return {
        "qwen2.5-0.5b": Qwen2Config(
            **ids,
            vocab_size=151_936,
            hidden_size=896,
            intermediate_size=4864,
            num_hidden_layers=24,
            num_attention_heads=14,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
        "qwen2.5-1.5b": Qwen2Config(
            **ids,
            vocab_size=151_936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        ),
        "llama-3-8b": LlamaConfig(
            **ids,
            vocab_size=128_256,
            hidden_size=4096,
            intermediate_size=14_336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=8192,
        ),
        "tiny": LlamaConfig(
            **ids,
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
        ),
    }


def list_rows(is_tiny: bool) -> dict[str, Rows]:
    """`short` rows differ in length, as instructions do; `long` ones fill the sequence."""
    if is_tiny:
        return {"short": Rows(4, 40, 2)}
    return {"short": Rows(20, 480, 8), "long": Rows(2100, 2100, 4)}


def list_cases(is_tiny: bool) -> list[Case]:
    """Every method on the smallest model, LoRA on the others; each model beside stock TRL."""
    small = "tiny" if is_tiny else "qwen2.5-0.5b"
    has_4_bits = not is_tiny and importlib.util.find_spec("bitsandbytes") is not None
    has_flash = not is_tiny and importlib.util.find_spec("flash_attn") is not None
    cases = [
        Case("trl lora", small, "short", LORA, "defaults"),
        Case("trl lora, no checkpointing", small, "short", LORA, "tuned"),
        Case("lora", small, "short", LORA | NO_CHECKPOINTING, like="trl lora"),
        Case("lora, checkpointing", small, "short", LORA | CHECKPOINTING, like="trl lora"),
        Case("lora, padded", small, "short", LORA | NO_CHECKPOINTING | {"attn_implementation": "sdpa"}),
        Case("lora, packed", small, "short", LORA | NO_CHECKPOINTING | {"packing": True}),
        Case("dora", small, "short", LORA | NO_CHECKPOINTING | {"use_dora": True}),
        Case("trl full", small, "short", {"use_lora": False}, "tuned"),
        Case("full", small, "short", NO_CHECKPOINTING | {"use_lora": False}, like="trl full"),
    ]
    if has_4_bits:
        cases.append(Case("qlora", small, "short", LORA | NO_CHECKPOINTING | {"use_qlora": True}))
    if has_flash:
        cases.append(Case("trl lora, packed, flash", small, "short", LORA, "flash"))
        flash = {"attn_implementation": "flash_attention_2"}
        cases.append(Case("lora, flash", small, "short", LORA | NO_CHECKPOINTING | flash, like="trl lora"))
    # Two devices have half of the rows each: the batches, and so the losses, are those of one.
    has_two = torch.cuda.device_count() > 1 or (is_tiny and not torch.cuda.is_available())
    split = LORA | CHECKPOINTING | {"num_devices": 2, "shard_model": True}
    if has_two:
        cases.append(Case("lora, split over 2", small, "short", split, like="trl lora"))
    if is_tiny:
        return [case._replace(is_tiny=True) for case in cases]
    for model, rows in (("qwen2.5-1.5b", "short"), ("llama-3-8b", "long")):
        cases.append(Case("trl lora", model, rows, LORA, "defaults"))
        cases.append(Case("lora", model, rows, LORA | NO_CHECKPOINTING, like="trl lora"))
        cases.append(Case("lora, checkpointing", model, rows, LORA | CHECKPOINTING, like="trl lora"))
        if has_4_bits:
            cases.append(Case("qlora", model, rows, LORA | CHECKPOINTING | {"use_qlora": True}))
        if has_two:
            cases.append(Case("lora, split over 2", model, rows, split, like="trl lora"))
    return cases


def save_model(name: str, folder: Path) -> None:
    """Save a random model of this shape in bf16 (`tiny` in fp32) with a small tokenizer."""
    from transformers import AutoModelForCausalLM

    build_tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):  # where random numbers are drawn fast
        dtype = torch.float32 if name == "tiny" else torch.bfloat16
        model = AutoModelForCausalLM.from_config(list_shapes()[name], dtype=dtype)
    model.save_pretrained(folder)


def write_rows(rows: Rows, count: int, file: Path) -> None:
    """Write `count` instructions whose answers have a random number of words."""
    draw = random.Random(0)  # noqa: S311 - no secret
    texts = (" ".join(draw.choices(WORDS, k=draw.randint(rows.fewest, rows.most))) for _ in range(count))
    file.write_text(json.dumps([{"instruction": "Say it.", "output": text} for text in texts]), encoding="utf-8")
