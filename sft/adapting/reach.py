"""Finds the layers that a row of text passes through and sends a gradient back to, by a trial pass."""

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.pytorch_utils import Conv1D

from sft.adapting.shortened import small_head
from sft.errors import ModelNotSupported, is_of_machine
from sft.models.experts import find_expert_parameters, is_expert_list

TRIAL_TOKENS = 12
MOST_TRIES = 8  # passes in training mode, which may skip layers at random (LayerDrop)
UNMASKED = "sdpa_unmasked"


class Reach(NamedTuple):
    """Layers that a row of text passes through; `odd` layers have an output that an adapter can't be added to.

    With `is_guess` the real set may be smaller.
    """

    reached: set[str]
    odd: set[str]
    is_guess: bool = False


def find_reached(model: PreTrainedModel, names: set[str]) -> Reach:
    """Find which of the named layers affect the logits of a row of text and get a gradient.

    A vision tower, for one, does neither. `odd` layers return something else than a linear layer, such as a router
    that returns a tuple. If one expert of a layer is reached, all its experts count as reached, as a short text is
    routed to only a few of them.

    The model may be empty (on the meta device). If its pass fails there, all layers of the decoder count as reached.

    Raises ModelNotSupported if a forward and backward pass fails on a model with weights.
    """
    try:
        try:
            with small_head(model):
                reached, odd = _pass_through(model, names)
        except Exception:  # a model that counts on all logits
            reached, odd = _pass_through(model, names)
    except Exception as error:
        if is_of_machine(error):
            raise
        if not _is_empty(model):
            lines = str(error).strip().splitlines() or [type(error).__name__]
            name = model.name_or_path.rstrip("/").rpartition("/")[2]
            raise ModelNotSupported(
                f"base_model {name} gives no gradient for a row of text: {lines[0].partition('. ')[0]}"
            ) from error
        try:  # some models need a mask
            mask = torch.ones(1, 1, TRIAL_TOKENS, TRIAL_TOKENS, dtype=torch.bool, device="meta")
            reached, odd = _pass_through(model, names, attention_mask=mask)
        except Exception:  # the model computes with values, which the meta device does not have
            return Reach(_guess_reached(model, names), set(), is_guess=True)
    siblings = {name: _describe_siblings(model, name) for name in names}
    found = {siblings[name] for name in reached} - {None}
    return Reach({name for name in names - odd if name in reached or siblings[name] in found}, odd)


def _pass_through(model: PreTrainedModel, names: set[str], **inputs: Tensor) -> tuple[set[str], set[str]]:
    reached: set[str] = set()
    odd: set[str] = set()
    with _frozen(model), ExitStack() as hooks:
        for name in names:
            hooks.callback(model.get_submodule(name).register_forward_hook(_mark(name, reached, odd)).remove)
        output = model(input_ids=draw_text(model, TRIAL_TOKENS), use_cache=False, **inputs)
        output.logits.float().logsumexp(dim=-1).sum().backward()
        hooks.close()
        return reached - _find_passed_by(model, reached, **inputs), odd


def _find_passed_by(model: PreTrainedModel, names: set[str], **inputs: Tensor) -> set[str]:
    """Layers whose forward is not called in training mode: their weights are used directly, bypassing any adapter."""
    left = set(names)
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(), ExitStack() as hooks:
            for name in names:
                note = functools.partial(lambda name, *_: left.discard(name), name)
                hooks.callback(model.get_submodule(name).register_forward_hook(note).remove)
            for _ in range(MOST_TRIES):
                if not left:
                    break
                model(input_ids=draw_text(model, TRIAL_TOKENS), use_cache=False, **inputs)
    except Exception:  # a model that fails in training mode is refused before the first step
        return set()
    finally:
        model.eval()
    return left


def draw_text(model: PreTrainedModel, length: int, seed: int = 0) -> Tensor:
    """Token ids of a random text without special tokens (images and the like). (1, length)"""
    config = model.config
    special = {value for name, value in _list_token_ids(config)}
    vocabulary = min(model.get_input_embeddings().weight.shape[0], config.get_text_config().vocab_size)
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        vocabulary = min(vocabulary, head.out_features)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (1, length), generator=generator)
    plain = next((token for token in range(min(vocabulary, 1000)) if token not in special), 0)
    for token in special:
        ids[ids == token] = plain
    return ids.to("meta" if _is_empty(model) else model.device)


def _list_token_ids(config: Any) -> Iterator[tuple[str, int]]:
    for name, value in vars(config).items():
        if isinstance(value, int) and name.endswith(("token_id", "token_index")):
            yield name, value
        elif hasattr(value, "model_type"):
            yield from _list_token_ids(value)


def _mark(name: str, reached: set[str], odd: set[str]) -> Callable[..., Any]:
    def note(gradient: Tensor) -> None:
        if gradient.device.type == "meta" or bool(gradient.any()):
            reached.add(name)

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        width = module.nf if isinstance(module, Conv1D) else module.out_features
        if not isinstance(output, Tensor) or output.shape != (*inputs[0].shape[:-1], width):
            odd.add(name)
            return None
        if inputs[0].device.type != "meta" and not bool(inputs[0].any()):
            return None  # an adapter learns nothing from an input of zeros
        # Adds a trainable 0 where an adapter would add B A x; its gradient is the sum over the layer's output.
        marked = output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        if marked.requires_grad:
            marked.register_hook(note)
        return marked

    return hook


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Freeze all weights and turn dropout off; on the meta device experts return their input."""
    was_training, trained = model.training, [weight for weight in model.parameters() if weight.requires_grad]
    stubs = []
    model.eval()
    for weight in trained:
        weight.requires_grad_(False)
    if is_empty := _is_empty(model):  # routing tokens to experts needs values
        holders = {name.rpartition(".")[0] for name in find_expert_parameters(model)}
        stubs = [model.get_submodule(name) for name in holders]
    for stub in stubs:
        stub.forward = functools.partial(_pass_on)
    try:
        with torch.enable_grad(), _without_masks(model) if is_empty else nullcontext():
            yield
    finally:
        for stub in stubs:
            del stub.forward
        for weight in trained:
            weight.requires_grad_(True)
        model.train(was_training)


@contextmanager
def _without_masks(model: PreTrainedModel) -> Iterator[None]:
    """Keep transformers from building masks and looking for padding, both of which read values."""
    AttentionInterface.register(UNMASKED, _attend)  # transformers builds no mask for an unknown implementation
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(vars(config), dict(vars(config))) for config in configs.values()]
    for values, _ in before:  # set in __dict__, as the configurations validate what is assigned
        values.update({name: None for name in ("pad_token_id",) if name in values})
        values["_attn_implementation_internal"] = UNMASKED
    try:
        yield
    finally:
        for values, old in before:
            values.update(old)


def _attend(module: nn.Module, *states: Any, softcap: Any = None, **kwargs: Any) -> Any:
    """SDPA plus the model's other trainable inputs to attention, such as sinks; a softcap does not affect reach."""
    output, weights = sdpa_attention_forward(module, *states, **kwargs)
    return output + _sum_learning(kwargs.values()), weights


def _is_empty(model: PreTrainedModel) -> bool:
    return any(parameter.device.type == "meta" for parameter in model.parameters())


def _pass_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Stand-in for experts: their input, plus the routing weights so that these get a gradient."""
    return hidden + _sum_learning([*args, *kwargs.values()])


def _sum_learning(values: Iterable[Any]) -> Tensor | int:
    """Sum of the tensors that need a gradient."""
    return sum(value.sum() for value in values if isinstance(value, Tensor) and value.requires_grad)


def _describe_siblings(model: PreTrainedModel, name: str) -> str | None:
    """The name with `*` for the expert's number, the same for all experts of a layer; None outside of experts."""
    for number in re.finditer(r"\.\d+\.", name):
        if is_expert_list(model, name[: number.start()]):
            return name[: number.start()] + ".*." + name[number.end() :]
    return None


def _guess_reached(model: PreTrainedModel, names: set[str]) -> set[str]:
    try:
        decoder = model.get_decoder()
    except Exception:  # the model has no such method
        decoder = None
    inside = {id(module) for module in (model if decoder is None else decoder).modules()}
    return {name for name in names if id(model.get_submodule(name)) in inside}
