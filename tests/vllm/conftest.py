"""A generation process with a real vLLM. Without one (TUNEYARD_VLLM, or `make vllm-check`) its tests are skipped."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from jobs.service.generator import Generator
from jobs.settings import PROJECT_ROOT, Settings
from sft.checkpoints.folders import publish_checkpoint, stage_checkpoint
from tests.tiny_models import build_tokenizer

FOUND = shutil.which(os.environ.get("TUNEYARD_VLLM") or PROJECT_ROOT / ".venv-vllm" / "bin" / "vllm")
SIZES = {  # vLLM computes no heads of 16 on a CPU
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "bos_token_id": None,
}


class Service(NamedTuple):
    """A generation process, and what it answers from."""

    settings: Settings
    models: Path
    adapters: dict[str, dict[str, Path]]  # of each base model, by name
    owner: Generator


def build(kind: str, **common: int) -> PreTrainedModel:
    """A random model."""
    torch.manual_seed(0)
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, **common))
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, **common))


def save_adapter(base: PreTrainedModel, folder: Path, step: int, **options: object) -> Path:
    """Save an adapter of random weights as the checkpoint of a step, and return its folder."""
    torch.manual_seed(step)
    wanted = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, **options}
    staged = stage_checkpoint(folder, step)
    get_peft_model(base, LoraConfig(**wanted)).save_pretrained(staged)
    return publish_checkpoint(staged)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A generation process whose engine is vLLM, also on a CPU."""
    if FOUND is None:
        pytest.skip("vLLM is not installed here: TUNEYARD_VLLM, or make vllm-check")
    root = tmp_path_factory.mktemp("vllm")
    models, adapters = root / "models", {}
    tokenizer = build_tokenizer()
    for kind in ("llama", "qwen2"):
        tokenizer.save_pretrained(models / kind)
        ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        build(kind, vocab_size=len(tokenizer), **ids).save_pretrained(models / kind)
        adapters[kind] = {
            name: save_adapter(build(kind, vocab_size=len(tokenizer), **ids), root / kind, step, **options)
            for step, (name, options) in enumerate(
                {
                    "first": {},
                    "second": {"r": 16, "use_rslora": True},
                    "patterns": {"rank_pattern": {"q_proj": 8}, "alpha_pattern": {"k_proj": 2}},
                    "dora": {"use_dora": True},
                    "whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
                }.items(),
                start=1,
            )
        }
    settings = Settings(
        home=root / "home",
        model_root=models,
        dtype="none",
        generation_engine="vllm",
        vllm=Path(FOUND),
        generation_idle_seconds=3600,
    )
    owner = Generator(settings)
    yield Service(settings, models, adapters, owner)
    owner.close()
