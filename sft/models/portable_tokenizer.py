"""Saves a tokenizer so that it also loads in transformers 4, which vLLM and many other tools use.

transformers 5 writes the class name `TokenizersBackend` and a list of tokens in a form that version 4 does not read.
"""

import json
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sft.models.model_texts import PLAIN_CLASSES, read_object

NEW_CLASS, OLD_CLASS = PLAIN_CLASSES
CONFIG = "tokenizer_config.json"
NOT_KEPT = ("is_local", "local_files_only")  # loading options, not part of the tokenizer
SAMPLE = "Say 3: naïve  café,\n\tdef f(x): return '東京' + \"🙂\""


def save_portable(tokenizer: PreTrainedTokenizerBase, folder: Path, base: Path) -> None:
    """Save a tokenizer with its chat template in a form that transformers 4 and 5 read.

    It keeps the class named in the base model's folder if that tokenizes text as before.

    Args:
        base: folder of the base model.
    """
    tokenizer.save_pretrained(folder)
    path = folder / CONFIG
    if not path.is_file():
        return
    written = path.read_text(encoding="utf-8")
    values = json.loads(written)
    declared = read_object(base / CONFIG).get("tokenizer_class")
    for name in dict.fromkeys((declared, OLD_CLASS)):
        if isinstance(name, str) and name != NEW_CLASS and hasattr(transformers, name):
            path.write_text(json.dumps(_make_portable(values, name), indent=2, ensure_ascii=False), encoding="utf-8")
            if _reads_alike(tokenizer, folder):
                return
    path.write_text(written, encoding="utf-8")


def _make_portable(values: dict[str, Any], name: str) -> dict[str, Any]:
    made = {key: value for key, value in values.items() if key not in NOT_KEPT} | {"tokenizer_class": name}
    if isinstance(made.get("extra_special_tokens"), list):  # version 4 expects a mapping
        made["additional_special_tokens"] = made.pop("extra_special_tokens")
    return made


def _reads_alike(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Whether the saved tokenizer encodes a sample text with all special tokens as before."""
    text = SAMPLE + "".join(tokenizer.all_special_tokens)
    try:
        saved = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        return all(
            saved(text, add_special_tokens=add)["input_ids"] == tokenizer(text, add_special_tokens=add)["input_ids"]
            for add in (False, True)
        ) and set(saved.all_special_tokens) == set(tokenizer.all_special_tokens)
    except Exception:  # any error means that the class does not fit
        return False
