"""The adapter that training starts from: a new one, or the one in `adapter_path`."""

import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import check_target_module_exists
from transformers import PreTrainedModel

from sft.adapting.adaptation import Adaptation, plan_adaptation
from sft.adapting.adapter_files import SETTINGS, WEIGHTS, find_contradiction
from sft.adapting.injection import explain_misfit, find_lost, read_layers
from sft.adapting.reach import find_reached
from sft.adapting.start_adapter import describe_start
from sft.config import SFTConfig
from sft.confinement import step
from sft.errors import InvalidConfig, ModelNotFound, ModelUnusable, is_of_machine
from sft.models.layers import find_layers
from sft.models.model_texts import check_texts, read_object
from sft.models.quantized import count_weights
from sft.models.weights import find_pointer, find_weight_damage, read_shapes

OWN = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}  # our name: PEFT's name
# Other initializations are refused: PEFT would repeat them when it loads the adapter, and change the base weights, with
# pissa_niter_N in another way each time.
START = re.compile(r"gaussian|orthogonal|olora|pissa|eva|corda")
PLAIN = re.compile(r"[\w.-]+")  # a name, not a pattern
SIZE_MISMATCH = re.compile(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\).*?Size\(\[(.*?)\]\)")


def add_adapter(model: PreTrainedModel, config: SFTConfig) -> tuple[PreTrainedModel | PeftModel, Adaptation]:
    """Load the adapter in `adapter_path` into the model, or plan a new one.

    The trainer makes a new adapter from the `settings` of the returned Adaptation.

    Raises:
        InvalidConfig: the model lacks the target modules, or the adapter is for another model.
        ModelNotFound: the folder of `adapter_path` holds no adapter.
        ModelNotSupported: no layer of the model can be adapted.
    """
    if not config.use_lora:
        return model, Adaptation(None, sum(count_weights(parameter) for parameter in model.parameters()), {})
    if config.adapter_path:
        # For DDP alone, which otherwise looks for weights without a gradient at each step.
        reached = find_reached(model, set(find_layers(model))).reached if config.num_devices > 1 else set()
        adapted = _load_start(model, config, Path(config.adapter_path))
        found = replace(describe_start(adapted), is_reached=_lies_within(adapted, reached))
        kept = [sentence for settings in adapted.peft_config.values() for sentence in _list_kept(config, settings)]
        return adapted, replace(found, warnings=(*found.warnings, *kept))
    return model, plan_adaptation(model, config)


def _lies_within(adapted: PeftModel, reached: set[str]) -> bool:
    """Whether an adapter trains nothing but low-rank weights of these layers."""
    found = read_layers(adapted)
    trained = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    return not found.parameters and found.modules <= reached and all(".lora_" in name for name in trained)


def plan_adapter(model: PreTrainedModel, config: SFTConfig) -> Adaptation:
    """Plan what `add_adapter` does, on a model that may be empty; a missing adapter_path counts as a new adapter."""
    folder = Path(config.adapter_path) if config.adapter_path else None
    if folder is not None and (folder / SETTINGS).is_file():
        _check_files(folder)
        _check_kind(folder)
        _try_patterns(model, folder)
        settings = LoraConfig.from_pretrained(str(folder))
        settings.inference_mode = False  # saved adapters have true, which would count no weight as trained
        _check_start(config, settings, model)
        stored = {name: shape for name, (_, shape) in read_shapes(folder / WEIGHTS).items()}
        found = describe_start(model, settings, stored)
        return replace(found, warnings=(*found.warnings, *_list_kept(config, settings)))
    return add_adapter(model, config.model_copy(update={"adapter_path": None}))[1]


def _load_start(model: PreTrainedModel, config: SFTConfig, folder: Path) -> PeftModel:
    check_loadable(model, folder)
    subject = f"adapter_path {folder} does not fit base_model {config.base_model}"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Found missing adapter keys")  # an error of ours, below
            adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=True)
    except Exception as error:
        if is_of_machine(error):
            raise
        raise InvalidConfig(f"{subject}: {_explain_misfit(model, error)}") from error
    if misfit := _find_misfit(adapted, folder):
        raise InvalidConfig(f"{subject}: {misfit}")
    if lost := find_lost(adapted):
        raise InvalidConfig(f"{subject}: PEFT loads nothing into {len(lost)} of its layers, {min(lost)} for one")
    for adapter in adapted.peft_config.values():
        _check_start(config, adapter, adapted.get_base_model())
        adapter.base_model_name_or_path = model.name_or_path  # PEFT would look a Hub id up at each checkpoint
    return adapted


def _list_kept(config: SFTConfig, adapter: LoraConfig) -> Iterator[str]:
    """Warnings about LoRA settings, other than defaults, that the adapter in adapter_path overrides."""
    for name, field in OWN.items():
        asked, own = getattr(config, name), getattr(adapter, field)
        if asked not in (own, SFTConfig.model_fields[name].default):
            yield f"{name} {asked} is ignored: the adapter in adapter_path keeps its own, {own}"
    if config.lora_target_modules is not None:
        yield "lora_target_modules is ignored: the adapter in adapter_path keeps the layers it has"


def _check_files(folder: Path) -> None:
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            has_pickle = name == WEIGHTS and (folder / "adapter_model.bin").is_file()
            remedy = "save it again with `save_pretrained`" if has_pickle else "name the folder of a saved adapter"
            found = ", only pickled weights (adapter_model.bin), which are not read" if has_pickle else ""
            raise ModelNotFound(f"adapter_path {folder} has no {name}{found}; {remedy}")
    check_texts(folder, f"adapter_path {folder}")
    if damage := find_weight_damage(folder / WEIGHTS):
        raise ModelUnusable(f"adapter_path {folder} can't be read: {WEIGHTS} {damage}")
    if pointer := find_pointer(folder):
        raise ModelUnusable(f"adapter_path {folder} {pointer}")
    if contradiction := find_contradiction(folder):
        raise ModelUnusable(f"adapter_path {folder} can't be used: {contradiction}")


def _explain_misfit(model: PreTrainedModel, error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"its file lacks {error}"
    text = " ".join(str(error).split())
    found = SIZE_MISMATCH.search(text)
    if found is None:
        return text[:300] or type(error).__name__
    name, saved, here = found.groups()
    rows = str(getattr(model.get_input_embeddings(), "num_embeddings", None))
    grown = saved.split(", ")[0]  # V of an embedding (V, D)
    if here.split(", ")[0] == rows != grown:
        return (
            f"the adapter was trained with a vocabulary of {grown} tokens and the model has {rows}; name the base "
            "model whose embeddings were resized for it"
        )
    return f"{name} is of shape ({saved}) in the adapter and of shape ({here}) for this model"


def _find_misfit(adapted: PeftModel, folder: Path) -> str | None:
    """Explain which layers only the adapter or only the model has, which PEFT ignores; None if there are none."""
    saved = get_peft_model_state_dict(adapted, save_embedding_layers=False).items()
    expected = {name: list(value.shape) for name, value in saved if ".lora_" in name}
    return explain_misfit(expected, {name: shape for name, (_, shape) in read_shapes(folder / WEIGHTS).items()})


def _check_kind(folder: Path) -> None:
    """Accept LoRA only: other kinds of adapters name models, tokenizers and modules that PEFT would load too."""
    try:
        stored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind, needs_module = stored.get("peft_type"), bool(stored.get("megatron_config"))
        start = stored.get("init_lora_weights", True)
    except (ValueError, AttributeError, RecursionError) as error:
        raise InvalidConfig(f"adapter_path {folder} has no adapter_config.json that can be read: {error}") from error
    if kind != "LORA" or needs_module:
        what = "it names a module to import (megatron_config)" if needs_module else f"its peft_type is {kind!r}"
        raise InvalidConfig(f"adapter_path {folder} is not a plain LoRA adapter: {what}; name another one")
    if not isinstance(start, bool | None) and not (isinstance(start, str) and START.fullmatch(start)):
        raise InvalidConfig(
            f"adapter_path {folder} can't be trained further: its init_lora_weights {start!r:.60} would change the "
            "base model's weights; merge it into its base model, or name another one"
        )


def _try_patterns(model: PreTrainedModel, folder: Path) -> None:
    """Match an adapter's patterns against the model's layers as PEFT will, within the time limit of `step`."""
    stored = read_object(folder / SETTINGS)
    with step(f"adapter_path {folder}: comparing the patterns in its {SETTINGS} with the model's layers"):
        for field in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern", "layers_pattern"):
            values = stored.get(field) or ()
            for pattern in (values,) if isinstance(values, str) else values:
                if not isinstance(pattern, str) or PLAIN.fullmatch(pattern):
                    continue
                try:
                    for name, _ in model.named_modules():
                        for text in (pattern, rf"(.*\.)?({pattern})$", rf".*\.{pattern}\.(\d+)\."):
                            re.match(text, name)
                except (re.error, RecursionError, OverflowError) as error:
                    raise InvalidConfig(
                        f"adapter_path {folder}: {field} in its {SETTINGS} has no valid pattern ({error}); name "
                        "another adapter"
                    ) from error


def _check_start(config: SFTConfig, adapter: LoraConfig, model: PreTrainedModel) -> None:
    """Raise InvalidConfig for an adapter that has no effect, can't be merged, or lacks the DoRA or rsLoRA asked for."""
    if getattr(adapter, "alora_invocation_tokens", None):
        raise InvalidConfig(
            "the adapter in adapter_path acts only behind the tokens of its alora_invocation_tokens, which rows do not "
            "have; start a new adapter"
        )
    if adapter.lora_alpha == 0:
        raise InvalidConfig("the adapter in adapter_path has lora_alpha 0 and never acts; start a new adapter")
    if config.save_merged_model and (reason := _find_merge_obstacle(adapter, model)):
        raise InvalidConfig(f"save_merged_model: the adapter in adapter_path {reason}; set save_merged_model to false")
    for name, what in (("use_dora", "DoRA"), ("use_rslora", "rsLoRA")):
        if getattr(config, name) and not getattr(adapter, name, False):
            raise InvalidConfig(
                f"{name} is true, but the adapter in adapter_path was made without {what} and keeps its kind; "
                f"set {name} to false or start a new adapter"
            )


def _find_merge_obstacle(adapter: LoraConfig, model: PreTrainedModel) -> str | None:
    """Why PEFT can't merge this adapter after training; None if it can."""
    if getattr(adapter, "layer_replication", None):
        return "repeats layers (layer_replication), which a model without it can't"
    if getattr(adapter, "lora_bias", False) and any(
        layer.bias is None
        for name, layer in find_layers(model).items()
        if check_target_module_exists(adapter, name.removesuffix(".base_layer"))
    ):
        return "has biases (lora_bias) for layers without any"
    return None


def check_loadable(model: PreTrainedModel, folder: Path) -> None:
    """Check an adapter before PEFT loads it, to be used or trained further: LoRA, safetensors, patterns that end.

    Raises:
        InvalidConfig: its kind is not supported.
        ModelNotFound: the folder holds no adapter.
        ModelUnusable: its files are damaged.
    """
    _check_files(folder)
    _check_kind(folder)
    _try_patterns(model, folder)
