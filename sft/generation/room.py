"""How much memory a model and a batch need, and what a model's limits are."""

from pathlib import Path
from typing import Any

from sft.models.model_texts import read_object
from sft.models.weights import read_shapes

OVERHEAD_BYTES = 600 * 2**20  # the libraries, buffers of a step
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
MOST_POSITIONS = 131_072  # of a model that names no limit


def measure_weights(folder: Path, item_bytes: int) -> int:
    """Bytes of a model's weights in a dtype of `item_bytes`."""
    total = 0
    for file in folder.glob("*.safetensors"):
        for _, shape in read_shapes(file).values():
            size = item_bytes
            for length in shape:
                size *= length
            total += size
    return total


def find_positions(folder: Path) -> int:
    """The number of positions a model has, for prompt and answer together."""
    settings = _read_text_settings(folder)
    found = [settings[name] for name in POSITIONS if isinstance(settings.get(name), int) and settings[name] > 0]
    return min(found[0], MOST_POSITIONS) if found else MOST_POSITIONS


def measure_token(config: Any, item_bytes: int) -> int:
    """Bytes that one token of one sequence takes in the cache of keys and values, at most."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * text.num_hidden_layers * heads * width * item_bytes)


def find_ends(folder: Path, tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the tokenizer's, and those of the model's generation_config.json."""
    stored = read_object(folder / "generation_config.json").get("eos_token_id")
    named = stored if isinstance(stored, list) else [stored]
    found = {one for one in (*named, tokenizer.eos_token_id) if isinstance(one, int) and not isinstance(one, bool)}
    return {one for one in found if 0 <= one < len(tokenizer)}


def _read_text_settings(folder: Path) -> dict[str, Any]:
    settings = read_object(folder / "config.json")
    text = settings.get("text_config")
    return {**settings, **text} if isinstance(text, dict) else settings
