"""Which adapters vLLM answers as PEFT does. Others it refuses, or loads in part without saying so."""

from pathlib import Path
from typing import Any

from sft.adapting.adapter_files import SETTINGS, STARTS_BESIDE, VLLM_RANKS, WEIGHTS
from sft.models.model_texts import read_object
from sft.models.weights import read_shapes

OLDEST = (0, 32)  # version of vLLM: older ones ignore some settings of adapters, and lack options used here
USUAL_RANK = 64  # reserved at least, so that adapters of most ranks share a server
# What a LoRA adapter may have in its settings; anything else that is set may change what it computes.
KNOWN = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "fan_in_fan_out",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",  # without use_qalora
    "r",
    "rank_pattern",
    "revision",
    "target_modules",
    "task_type",
    "use_rslora",
}
PLAIN_STARTS = (*STARTS_BESIDE, "eva")  # values of init_lora_weights that leave the base model as it is
ENDS = (".lora_A.weight", ".lora_B.weight")


class VllmUnfit(Exception):
    """vLLM can't answer for this model or adapter as PEFT does; the message says why."""


def find_rank(adapter: Path) -> int:
    """The value of `--max-lora-rank` that an adapter needs. Raises VllmUnfit."""
    settings = read_object(adapter / SETTINGS)
    if settings.get("peft_type") != "LORA":
        raise VllmUnfit(f"its peft_type is {settings.get('peft_type')!r:.80}, not LORA")
    if settings.get("bias", "none") != "none":
        raise VllmUnfit(f"it has bias {settings['bias']!r:.80}")
    start = settings.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        raise VllmUnfit(f"it has init_lora_weights {start!r:.80}")
    if unknown := sorted(name for name, value in settings.items() if value and not _is_known(name)):
        raise VllmUnfit(f"it has {', '.join(unknown):.200}")
    if others := [name for name in read_shapes(adapter / WEIGHTS) if not name.endswith(ENDS)]:
        raise VllmUnfit(f"{WEIGHTS} holds {others[0]:.200}, which is no LoRA matrix of a linear layer")
    rank = max(_list_ranks(settings))
    if rank > VLLM_RANKS[-1]:
        raise VllmUnfit(f"its rank is {rank}, more than {VLLM_RANKS[-1]}")
    return next(one for one in VLLM_RANKS if one >= max(rank, USUAL_RANK))


def check_version(version: str) -> None:
    """Raise VllmUnfit for a version that is too old."""
    parts = version.split(".")[:2]
    numbers = tuple(int(part) for part in parts if part.isdecimal())
    if len(numbers) == len(OLDEST) and numbers < OLDEST:
        raise VllmUnfit(f"version {version} is older than {'.'.join(map(str, OLDEST))}")


def _is_known(name: str) -> bool:
    return name in KNOWN or name in ("bias", "init_lora_weights")


def _list_ranks(settings: dict[str, Any]) -> list[int]:
    pattern = settings.get("rank_pattern")
    found = [settings.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())]
    if not all(isinstance(rank, int) and rank > 0 for rank in found):
        raise VllmUnfit("its ranks are no positive integers")
    return found
