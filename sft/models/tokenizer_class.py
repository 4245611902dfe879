"""Finds a model's tokenizer class without `AutoTokenizer`, whose import loads torch and takes seconds."""

from pathlib import Path
from typing import TYPE_CHECKING

from sft.models.model_texts import PLAIN_CLASSES, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DECLARED = {  # by model type: classes in tokenizer_config.json that AutoTokenizer then uses
    "llama": (*PLAIN_CLASSES, "GPT2Tokenizer"),
    "gpt2": (*PLAIN_CLASSES, "GPT2Tokenizer"),
    "qwen2": ("Qwen2Tokenizer",),
    "qwen3": (*PLAIN_CLASSES, "Qwen2Tokenizer"),
    "gemma": (*PLAIN_CLASSES, "GemmaTokenizer"),
    "gemma2": (*PLAIN_CLASSES, "GemmaTokenizer"),
    "gemma3_text": (*PLAIN_CLASSES, "GemmaTokenizer"),
}


def find_tokenizer_class(path: Path) -> "type[PreTrainedTokenizerBase] | None":
    """The class that `AutoTokenizer` would use for the model in a folder in simple cases; else None."""
    config, declared = read_object(path / "config.json"), read_object(path / "tokenizer_config.json")
    name = declared.get("tokenizer_class")
    known = DECLARED.get(str(config.get("model_type")), ())
    if "auto_map" in declared or not isinstance(name, str) or not (path / "tokenizer.json").is_file():
        return None
    name = name if name in PLAIN_CLASSES else name.removesuffix("Fast")
    if name not in known:
        return None
    import transformers

    found: type[PreTrainedTokenizerBase] | None = getattr(transformers, name, None)
    return found
