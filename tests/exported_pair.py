"""A tiny Llama whose tokenizer llama.cpp's converter knows, and a LoRA adapter for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from sft.chat.templates import apply_template
from sft.models.loading import quiet_transformers
from tests.tiny_models import build_byte_tokenizer, build_model


@dataclass
class Pair:
    """Folders of a base model and an adapter."""

    base: Path
    adapter: Path


def save_pair(folder: Path) -> Pair:
    """Save both below a folder."""
    base, adapter = folder / "base", folder / "adapter"
    tokenizer = build_byte_tokenizer()
    tokenizer.save_pretrained(base)
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    build_model("llama", {"vocab_size": len(tokenizer), "initializer_range": 0.2, **ids}).save_pretrained(base)
    return Pair(base, save_adapter(base, adapter))


def save_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter with random weights on all linear layers, saved with its tokenizer as a job does."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    values = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    with quiet_transformers():
        adapted = get_peft_model(model, LoraConfig(init_lora_weights=False, **values))
    adapted.peft_config["default"].init_lora_weights = True
    adapted.save_pretrained(folder, save_embedding_layers=False)
    tokenizer = build_byte_tokenizer()
    apply_template(tokenizer, "chatml")
    tokenizer.save_pretrained(folder)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 2]
    model.generation_config.save_pretrained(folder)
    return folder
