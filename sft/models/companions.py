"""Saves tokenizer, chat template and generation config beside the weights; saving is tried before training."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from sft.errors import DiskFull, InvalidConfig, ModelUnusable, walk_causes
from sft.files.disk import is_about_space
from sft.files.temporary_folders import fresh_folder
from sft.models.model_texts import read_object
from sft.models.portable_tokenizer import save_portable


def settle_generation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> list[str]:
    """Set a generation config that can be saved and that stops at the end of an answer. Returns warnings.

    Published ones often have values that transformers warns about on reading and refuses to write, such as a
    temperature without sampling. Values that can't be written are left out.

    Args:
        path: folder of the base model.
    """
    settled, left_out = _keep_valid(_read_generation(model, path))
    known, stop = settled.eos_token_id, tokenizer.eos_token_id
    others = [known] if isinstance(known, int) else list(known or [])
    stops = dict.fromkeys(token for token in (stop, *others) if token is not None)
    settled.eos_token_id = list(stops) or None
    settled.pad_token_id = tokenizer.pad_token_id
    model.generation_config = settled
    if not left_out:
        return []
    return [f"the base model's generation_config.json is not valid; left out of the result: {', '.join(left_out)}"]


def _read_generation(model: PreTrainedModel, path: Path) -> dict[str, Any]:
    """Read the model's generation config, valid or not; older models have it in config.json."""
    if (path / GENERATION_CONFIG_NAME).exists():
        return read_object(path / GENERATION_CONFIG_NAME)
    try:
        values: dict[str, Any] = GenerationConfig.from_model_config(model.config).to_diff_dict()
    except Exception:  # without a readable one generation has its defaults
        return {}
    return values


def save_companions(
    folder: Path, tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig, model_path: Path
) -> None:
    """Save the tokenizer with its chat template, and the generation config."""
    save_portable(tokenizer, folder, model_path)
    generation.save_pretrained(folder)


def make_folder(folder: Path, field: str) -> None:
    """Make a folder that a job writes to. Raises InvalidConfig or DiskFull, naming the field that sets it."""
    with _writing_to(folder, field):
        folder.mkdir(parents=True, exist_ok=True)


def try_saving(
    output_dir: Path,
    name: str,
    model: PreTrainedModel,
    model_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    configs: list[Any],
) -> None:
    """Save everything but the weights to a temporary folder, to find errors before training.

    Args:
        name: the base model, for messages.
        configs: the adapters' configs, which are saved too.

    Raises:
        InvalidConfig: nothing can be written there.
        ModelUnusable: something of the model can't be saved.
        DiskFull: there is no space for it.
    """
    make_folder(output_dir, "output_dir")
    with _writing_to(output_dir, "output_dir"), fresh_folder(output_dir / "try") as folder:
        with _saving("tokenizer or generation config", name):
            save_companions(folder, tokenizer, model.generation_config, model_path)
        with _saving("configuration", name):
            copy.deepcopy(model.config).save_pretrained(folder)
        with _saving("adapter configuration", name):
            for config in configs:
                config.save_pretrained(folder)


@contextmanager
def _writing_to(folder: Path, field: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if any(map(is_about_space, walk_causes(error))):
            raise DiskFull(f"no space left in {folder}; free some, or set {field} to another disk") from error
        raise InvalidConfig(f"{field} {folder} can't be written to: {error}") from error


@contextmanager
def _saving(part: str, name: str) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ModelUnusable(f"base_model {name}: its {part} can't be saved: {reason}") from error


def _keep_valid(values: dict[str, Any]) -> tuple[GenerationConfig, list[str]]:
    """A config of the values that can be saved together, and the names of the others."""
    settled, left_out = GenerationConfig(), list[str]()
    stops = values.get("eos_token_id")
    if stops is not None and not all(type(token) is int for token in (stops if isinstance(stops, list) else [stops])):
        values, left_out = {**values, "eos_token_id": None}, ["eos_token_id"]
    # `do_sample` first: it decides which of the others are valid.
    for name in sorted(values, key=lambda name: name != "do_sample"):
        if name.startswith("_") or name in ("transformers_version", "pad_token_id"):  # the tokenizer's counts
            continue
        former = getattr(settled, name, None)
        setattr(settled, name, values[name])
        if not _is_valid(settled):
            setattr(settled, name, former)
            left_out.append(name)
    return settled, left_out


def _is_valid(config: GenerationConfig) -> bool:
    try:
        config.validate(strict=True)
        config.to_json_string()
    except Exception:  # any error means that it can't be saved
        return False
    return True
