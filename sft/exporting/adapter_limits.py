"""Lists what other programs can't load of an adapter, from its adapter_config.json."""

import math
from typing import Any

from sft.adapting.adapter_files import STARTS_BESIDE, VLLM_RANKS
from sft.errors import ExportRefused


def list_obstacles(settings: dict[str, Any]) -> list[str]:
    """What neither llama.cpp nor vLLM loads: llama.cpp knows pairs of A and B, vLLM refuses or ignores the rest.

    vllm/lora/peft_helper.py of github.com/vllm-project/vllm; https://docs.vllm.ai/en/latest/features/lora.html
    """
    start = settings.get("init_lora_weights")
    found = {
        f"it is of type {settings.get('peft_type')}, not LORA": settings.get("peft_type") != "LORA",
        "it is a DoRA adapter (use_dora)": settings.get("use_dora"),
        "it holds whole modules (modules_to_save)": settings.get("modules_to_save"),
        "it holds vectors of single tokens (trainable_token_indices)": settings.get("trainable_token_indices"),
        "it holds biases (bias)": settings.get("bias") not in (None, "none"),
        "it holds biases (lora_bias)": settings.get("lora_bias"),
        "it adapts stacked experts (target_parameters)": settings.get("target_parameters"),
        "its layers have scales of their own (alpha_pattern)": settings.get("alpha_pattern"),
        f"its start ({start}) changed the base model's weights": isinstance(start, str) and start not in STARTS_BESIDE,
    }
    return [what for what, is_so in found.items() if is_so]


def check_for_llama_cpp(settings: dict[str, Any]) -> None:
    """Raise ExportRefused, with reasons and the remedy, if llama.cpp can't load the adapter beside its base model."""
    obstacles = list_obstacles(settings)
    if settings.get("use_rslora"):  # its scale is always lora_alpha / rank (llama-adapter.h, `get_scale`)
        obstacles.append("its scale is lora_alpha / sqrt(rank) (use_rslora)")
    _refuse("llama.cpp", obstacles)


def check_for_vllm(settings: dict[str, Any]) -> int:
    """The smallest `--max-lora-rank` that holds this adapter.

    Raises ExportRefused, with reasons and the remedy, if vLLM can't load the adapter beside its base model.
    """
    obstacles = list_obstacles(settings)
    if settings.get("rank_pattern"):  # not a field of its PEFTHelper: the scale would be that of the first rank
        obstacles.append("its layers have ranks of their own (rank_pattern)")
    rank = settings.get("r")
    largest = next((size for size in VLLM_RANKS if isinstance(rank, int) and size >= rank), math.inf)
    if math.isinf(largest):
        obstacles.append(f"its rank {rank} is above {VLLM_RANKS[-1]}")
    _refuse("vLLM", obstacles)
    return int(largest)


def _refuse(program: str, obstacles: list[str]) -> None:
    if obstacles:
        raise ExportRefused(
            f"{program} can't load this adapter beside its base model: {'; '.join(obstacles)}. Add --merged to export "
            "the merged model instead"
        )
