"""Reads a base model's config.json as transformers' configuration and explains errors in one sentence."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sft.errors import ModelUnusable, TuneyardError
from sft.files.temporary_folders import temporary_folder
from sft.models.model_texts import read_object
from sft.models.settings_repairs import repair
from sft.models.weights import raising_unusable

CONFIG = "config.json"
REMEDY = "compare it with the published one"
POSITIVE = (
    "hidden_size",
    "n_embd",
    "d_model",
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_attention_heads",
    "n_head",
    "n_heads",
    "vocab_size",
)
NOT_NEGATIVE = ("num_key_value_heads", "head_dim", "intermediate_size")  # may be 0 (GLM-5)
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list",
    "dict": "an object",
    "NoneType": "null",
}
FIELD = re.compile(r"[Ff]ield '([^']+)'")
EXPECTED = re.compile(r"expected (?:a )?(\w+)")
MOST_TRIES = 20


def read_settings(path: Path, subject: str) -> Any:
    """Read the configuration of the model in this folder, without the entries that `describe_repairs` names.

    Raises:
        ModelUnusable: it can't be read or is not valid.
    """
    values = read_object(path / CONFIG)
    _check_sizes(values, subject)
    repaired, warnings = repair(values)
    is_other = bool(warnings)
    for _ in range(MOST_TRIES):
        try:
            with explaining(repaired, subject, path):
                return _parse(repaired if is_other else None, path)
        except ModelUnusable as error:
            if not _convert(repaired, error.__cause__):
                raise
            is_other = True
    raise ModelUnusable(f"{subject} can't be read: its {CONFIG} has many entries of another kind; {REMEDY}")


def describe_repairs(path: Path) -> list[str]:
    """A warning about entries of config.json that are not used, if there are any."""
    return repair(read_object(path / CONFIG))[1]


@contextmanager
def explaining(values: dict[str, Any], subject: str, path: Path) -> Iterator[None]:
    """Raise a library's errors about config.json as ModelUnusable, naming the entry."""
    try:
        with raising_unusable(subject, path):
            yield
    except TuneyardError as error:
        cause = error.__cause__
        if cause is None or (sentence := _explain(values, cause)) is None:
            raise
        raise ModelUnusable(f"{subject} can't be read: {sentence}") from cause


def _parse(repaired: dict[str, Any] | None, path: Path) -> Any:
    from transformers import AutoConfig

    if repaired is None:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    with temporary_folder("tuneyard-config-") as folder:
        (folder / CONFIG).write_text(json.dumps(repaired), encoding="utf-8")
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    settings.name_or_path = str(path)
    return settings


def _check_sizes(values: dict[str, Any], subject: str) -> None:
    """Refuse impossible sizes, of the model or of its language part. Raises ModelUnusable."""
    text = values.get("text_config")
    for part in (values, text if isinstance(text, dict) else {}):
        for problem in (*_list_sizes(part), *_list_rates(part)):
            raise ModelUnusable(f"{subject} can't be read: {problem}; {REMEDY}")
    quantization = values.get("quantization_config")
    if quantization is not None and not (isinstance(quantization, dict) and quantization):
        raise ModelUnusable(
            f"{subject} can't be read: quantization_config in its {CONFIG} must be an object with a quant_method, got "
            f"{json.dumps(quantization):.60}; leave it out where the weights are not quantized"
        )


def _list_sizes(part: dict[str, Any]) -> Iterator[str]:
    for name in POSITIVE:
        size = part.get(name)
        if isinstance(size, int | float) and not isinstance(size, bool) and size <= 0:
            yield f"{name} in its {CONFIG} must be above 0, got {size}"
    for name in NOT_NEGATIVE:
        size = part.get(name)
        if isinstance(size, int | float) and size < 0:
            yield f"{name} in its {CONFIG} must be above 0, got {size}"


def _list_rates(part: dict[str, Any]) -> Iterator[str]:
    """Describe invalid dropout rates. null is usual for rates that are not used, but not for attention."""
    for name, rate in part.items():
        is_rate = name.endswith(("dropout", "_pdrop", "dropout_prob")) and isinstance(rate, int | float)
        if (is_rate and not 0 <= rate < 1) or (name == "attention_dropout" and rate is None):
            yield f"{name} in its {CONFIG} must be from 0 to below 1, got {json.dumps(rate)}"


def _explain(values: dict[str, Any], error: BaseException) -> str | None:
    """Explain the entry that a library's error is about; None if it is not known."""
    text = " ".join(str(error).split())
    kind = type(error).__name__
    if "trust_remote_code" in text:
        return None
    if kind == "StrictDataclassFieldValidationError" and (field := FIELD.search(text)):
        kinds = [KINDS[name] for name in dict.fromkeys(EXPECTED.findall(text)) if name in KINDS]
        got = _find_value(values, field.group(1))
        return (
            f"{field.group(1)} in its {CONFIG} must be {' or '.join(kinds) or 'of another kind'}, got {got}; {REMEDY}"
        )
    if kind == "StrictDataclassClassValidationError":
        reason = text.partition("Error: ")[2] or text
        return f"its {CONFIG} contradicts itself ({reason[:200].rstrip('.')}); {REMEDY}"
    if "model type" in text or "model_type" in text:
        named = values.get("model_type")
        if named is None:
            return f"its {CONFIG} names no model_type; {REMEDY}"
        return f"model_type {named!r:.60} in its {CONFIG} is not known to transformers here; take a model that is"
    zero = next((name for part in _walk(values) for name in NOT_NEGATIVE if part.get(name) == 0), None)
    if isinstance(error, ZeroDivisionError) and zero:
        return f"{zero} in its {CONFIG} must be above 0, got 0; {REMEDY}"
    if isinstance(error, KeyError) and error.args and "Missing required keys" not in text:
        name = _find_name(values, error.args[0])
        return f"{name} {error.args[0]!r:.60} in its {CONFIG} is not known; {REMEDY}" if name else None
    if kind in (
        "KeyError",
        "AttributeError",
        "TypeError",
        "IndexError",
        "ZeroDivisionError",
        "AssertionError",
        "ValueError",
    ):
        return f"its {CONFIG} has or lacks an entry, so that it can't be followed ({text[:200].rstrip('.')}); {REMEDY}"
    return None


def _convert(values: dict[str, Any], error: BaseException | None) -> bool:
    """Convert numbers between int and float where the value stays the same; returns whether one was converted."""
    field, text = FIELD.search(str(error)), str(error)
    if field is None:
        return False
    for part in _walk(values):
        number = part.get(field.group(1))
        if isinstance(number, int) and not isinstance(number, bool) and "expected float, got int" in text:
            part[field.group(1)] = float(number)
            return True
        if isinstance(number, float) and number.is_integer() and "expected int, got float" in text:
            part[field.group(1)] = int(number)
            return True
    return False


def _walk(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield values
    for value in values.values():
        if isinstance(value, dict):
            yield from _walk(value)


def _find_value(values: dict[str, Any], name: str) -> str:
    found = next((part[name] for part in _walk(values) if name in part), None)
    return json.dumps(found)[:60]


def _find_name(values: dict[str, Any], value: Any) -> str | None:
    return next((name for part in _walk(values) for name, own in part.items() if own == value), None)
