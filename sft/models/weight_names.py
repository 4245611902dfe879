"""Compares the names and shapes of the weights in a model's files with the model that its configuration builds."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sft.errors import ModelUnusable
from sft.models.weights import list_weight_files, read_shapes

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

COMPARED_BYTES = 2**22  # compared of two tables that should be tied
DTYPES = {  # safetensors' name: torch's name; others do not matter here
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
RANDOM = "config.json does not belong to these weights, or they are not all there"


def check_stored_names(model: "PreTrainedModel", path: Path, subject: str) -> list[str]:
    """Load the names and shapes of a model's files into the empty model, as transformers loads weights.

    Args:
        model: on the meta device, where it stays.
        path: its folder, whose files `check_weights` has checked.

    Returns warnings about weights that are not used.

    Raises:
        ModelUnusable: some of the model's weights would be initialized at random.
    """
    from sft.models.loading import quiet_transformers

    if getattr(model.config, "quantization_config", None):
        return []  # quantized files hold other tensors than the model; the job checks them
    try:
        with quiet_transformers():
            _, loading = type(model).from_pretrained(
                None,
                config=model.config,
                state_dict=read_empty(path, subject),
                device_map={"": "meta"},
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except Exception as error:
        raise ModelUnusable(
            f"{subject} has weights that can't be brought into the form of the model ({type(error).__name__}): {RANDOM}"
        ) from error
    check_loading(loading, subject)
    return [*describe_unread(loading), *describe_untied(model, path, subject)]


def check_loading(loading: Mapping[str, Any], subject: str) -> None:
    """Refuse a model if transformers found weights missing or of another shape and initialized them at random.

    Raises ModelUnusable.
    """
    if loading["mismatched_keys"]:
        name, stored, wanted = sorted(loading["mismatched_keys"])[0]
        raise ModelUnusable(
            f"{subject} can't be read: {len(loading['mismatched_keys'])} of its weights have other shapes than "
            f"config.json says, {name} for one is {_show(stored)} and should be {_show(wanted)}; config.json does not "
            "belong to these weights, or was changed (hidden_size, vocab_size, head counts)"
        )
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise ModelUnusable(
            f"{subject} lacks {len(missing)} of the model's weights, {missing[0]} for one, which would be random: "
            f"{RANDOM}{_hint_at_head(missing)}"
        )


def describe_unread(loading: Mapping[str, Any]) -> list[str]:
    """A warning about weights in the files that the configuration has no place for, if there are any."""
    names = sorted(loading["unexpected_keys"])
    if not names:
        return []
    return [
        f"{len(names)} weights in the base model's files are not used, {names[0]} for one: config.json has no place "
        "for them (fewer layers, say, or no biases); check that it belongs to these weights"
    ]


def describe_untied(model: "PreTrainedModel", path: Path, subject: str) -> list[str]:
    """A warning about two different tables in the files that the configuration ties, if there are any."""
    places = {name: file for file in list_weight_files(path, subject) for name in read_shapes(file)}
    for head, table in model.get_expanded_tied_weights_keys(all_submodels=True).items():
        if head in places and table in places and not _is_same(places[head], head, places[table], table):
            return [
                f"config.json says by tie_word_embeddings that {head} is {table}, and the base model's files hold two "
                "of other values: both are used as stored; other programs may use one alone, so set it to false there"
            ]
    return []


def read_empty(path: Path, subject: str) -> dict[str, "Tensor"]:
    """The tensors of a model's files by name, with dtypes and shapes alone."""
    import torch

    return {
        name: torch.empty(shape, dtype=getattr(torch, DTYPES.get(dtype, "float32")), device="meta")
        for file in list_weight_files(path, subject)
        for name, (dtype, shape) in read_shapes(file).items()
    }


def _is_same(file: Path, name: str, other_file: Path, other: str) -> bool:
    """Whether the first COMPARED_BYTES of two tensors are equal."""
    from safetensors import safe_open

    parts = []
    for place, key in ((file, name), (other_file, other)):
        with safe_open(place, framework="pt") as tensors:
            table = tensors.get_slice(key)
            row_bytes = 8 * max(table.get_shape()[1:], default=1)
            parts.append(table[: max(COMPARED_BYTES // row_bytes, 1)])
    return parts[0].shape == parts[1].shape and bool((parts[0] == parts[1]).all())


def _hint_at_head(missing: list[str]) -> str:
    if not any(name.endswith(("lm_head.weight", "embed_out.weight")) for name in missing):
        return ""
    return "; where the head is to be the table of embeddings, set tie_word_embeddings to true in it"


def _show(shape: Any) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
