"""Removes entries of a config.json that do not describe the model and would disturb its readers."""

import copy
import inspect
from collections.abc import Iterator
from typing import Any

# Options of a model's outputs, which training sets itself: by name, the value to use, or None to remove the entry.
OF_THE_OUTPUT: dict[str, Any] = {
    "return_dict": True,
    "use_return_dict": None,
    "output_hidden_states": False,
    "output_attentions": False,
    "torchscript": False,
    "use_cache": None,
    "attn_implementation": None,
    "_attn_implementation": None,
    "_attn_implementation_internal": None,
    "experts_implementation": None,
    "_experts_implementation": None,
    "generation_config": None,
    "device_map": None,
}
USUAL = {"use_cache": (True, False)}  # values that are kept
OF_CLASSES = (
    "attribute_map",
    "base_config_key",
    "base_model_pp_plan",
    "base_model_tp_plan",
    "has_no_defaults_at_init",
    "keys_to_ignore_at_inference",
    "sub_configs",
)
OF_CLASSIFIERS = ("id2label", "label2id", "num_labels", "problem_type")
DTYPES = ("dtype", "torch_dtype")
SHOWN_CHARACTERS = 60


def repair(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a config.json without such entries, and a warning about them if there are any."""
    repaired = copy.deepcopy(values)
    ignored = [f"{name} {_show(value)}" for name, value in _repair(repaired)]
    if not ignored:
        return values, []
    return repaired, [f"config.json of the base model has entries that are ignored: {', '.join(ignored)}"]


def _repair(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in list(values.items()):
        if isinstance(value, dict) and "model_type" in value:
            yield from _repair(value)
        elif _is_disturbing(values, name, value):
            yield name, value
            del values[name]
            if OF_THE_OUTPUT.get(name) is not None:
                values[name] = OF_THE_OUTPUT[name]


def _is_disturbing(values: dict[str, Any], name: str, value: Any) -> bool:
    if name in OF_THE_OUTPUT:
        usual = USUAL.get(name, (OF_THE_OUTPUT[name],))
        return not any(value is one for one in usual)
    if name in DTYPES:
        return value is not None and not _is_dtype(value)
    if name == "architectures":
        return value is not None and not (isinstance(value, list) and all(isinstance(one, str) for one in value))
    if name in OF_CLASSIFIERS:
        return value is not None and not isinstance(value, {"num_labels": int, "problem_type": str}.get(name, dict))
    if name == "pad_token_id":
        count = values.get("vocab_size")
        return isinstance(value, int) and isinstance(count, int) and not isinstance(value, bool) and value >= count > 0
    return name in OF_CLASSES or _is_of_python(name)


def _is_dtype(value: Any) -> bool:
    import torch

    return isinstance(value, str) and isinstance(getattr(torch, value.removeprefix("torch."), None), torch.dtype)


def _is_of_python(name: str) -> bool:
    """Whether the entry would shadow a method or another attribute of the configuration's class."""
    from transformers import PreTrainedConfig

    found = inspect.getattr_static(PreTrainedConfig, name, None)
    has_no_setter = isinstance(found, property) and found.fset is None
    return name.startswith("__") or has_no_setter or callable(found) or isinstance(found, classmethod | staticmethod)


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."
