"""Checks an adapter's weights file against its settings, without a model and without torch, so that the API can."""

from pathlib import Path

from sft.models.finite import find_not_finite
from sft.models.model_texts import read_object
from sft.models.weights import read_shapes

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# `--max-lora-rank`: vllm/config/lora.py (`MaxLoRARanks`) of github.com/vllm-project/vllm
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Values of init_lora_weights; the others may change the base model's weights as PEFT loads an adapter.
STARTS_BESIDE = ("gaussian", "orthogonal")
TOKENS = "trainable_tokens_delta"  # PEFT's name for the vectors of single tokens


def find_contradiction(folder: Path, most_bytes: int | None = None) -> str | None:
    """Explain what an adapter's file lacks of its settings, or that it holds NaN or infinities; None if all is well.

    Args:
        most_bytes: check at most so many bytes of weights for NaN and infinities.
    """
    settings, names = read_object(folder / SETTINGS), list(read_shapes(folder / WEIGHTS))
    if not names:
        return f"{WEIGHTS} holds no weights; save the adapter again"
    whole = settings.get("modules_to_save")
    for module in whole if isinstance(whole, list) else []:
        if isinstance(module, str) and not any(f"{module}." in name for name in names):
            return (
                f"{SETTINGS} has {module!r:.80} in modules_to_save, which are saved with the adapter as a whole, and "
                f"{WEIGHTS} has no weights of it; save the adapter again"
            )
    if settings.get("trainable_token_indices") and not any(TOKENS in name for name in names):
        return f"{SETTINGS} has trainable_token_indices and {WEIGHTS} no vectors of them; save the adapter again"
    if name := find_not_finite(folder / WEIGHTS, most_bytes):
        return (
            f"{name:.200} in {WEIGHTS} holds NaN or infinite numbers, as training that diverged leaves; take an "
            "earlier version of the adapter, or start a new one"
        )
    return None


def find_lacking(expected: dict[str, list[int]], stored: dict[str, list[int]]) -> str | None:
    """Explain which weight of `modules_to_save` an adapter's file lacks or has in another shape; None if none."""
    for name, shape in expected.items():
        if name not in stored:
            return f"its file lacks {name}, of a module in its modules_to_save"
        if stored[name] != shape:
            saved, here = (", ".join(map(str, sizes)) for sizes in (stored[name], shape))
            return f"{name} is of shape ({saved}) in the adapter and of shape ({here}) for this model"
    return None
