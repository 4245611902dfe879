"""Which layers a row of text passes through, and carries a gradient back to: found by trying."""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sft.experts import find_expert_parameters

TRIAL_TOKENS = 12


def find_reached(model: PreTrainedModel, names: set[str]) -> set[str]:
    """Those of the named layers that give a plain tensor for a row of text and get a gradient for it.

    A vision tower gets no row of text; a router that returns a tuple can't carry an adapter. Of the experts of a
    layer, which are alike, all count as reached when one is: a short text comes to few of them.

    The model may be empty (on the meta device). Where nothing can be computed there, what belongs to the decoder
    counts as reached.
    """
    reached: set[str] = set()
    modules = {name: model.get_submodule(name) for name in names}
    try:
        with _standing_still(model), ExitStack() as hooks:
            for name, module in modules.items():
                hooks.callback(module.register_forward_hook(_mark(name, reached)).remove)
            ids = draw_text(model, TRIAL_TOKENS)
            output = model(input_ids=ids, use_cache=False)
            output.logits.float().logsumexp(dim=-1).sum().backward()
    except Exception:
        if model.device.type != "meta":  # the layout's own trial explains what this model can't do
            raise
        return _guess_reached(model, names)
    siblings = {_describe_siblings(name) for name in reached}
    return {name for name in names if name in reached or _describe_siblings(name) in siblings - {None}}


def draw_text(model: PreTrainedModel, length: int, seed: int = 0) -> Tensor:
    """Token ids of a random text, (1, length), none of them one that stands for an image or the like."""
    config = model.config
    special = {value for name, value in _list_token_ids(config)}
    vocabulary = min(model.get_input_embeddings().weight.shape[0], config.get_text_config().vocab_size)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (1, length), generator=generator)
    plain = next((token for token in range(min(vocabulary, 1000)) if token not in special), 0)
    for token in special:
        ids[ids == token] = plain
    return ids.to(model.device)


def _list_token_ids(config: Any) -> Iterator[tuple[str, int]]:
    for name, value in vars(config).items():
        if isinstance(value, int) and name.endswith(("token_id", "token_index")):
            yield name, value
        elif hasattr(value, "model_type"):
            yield from _list_token_ids(value)


def _mark(name: str, reached: set[str]) -> Callable[..., Any]:
    def note(gradient: Tensor) -> None:
        if gradient.device.type == "meta" or bool(gradient.any()):
            reached.add(name)

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.dtype.is_floating_point:
            return None
        # As an adapter would, it adds something that learns; its gradient is that of the layer's result.
        marked = output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
        if marked.requires_grad:
            marked.register_hook(note)
        return marked

    return hook


@contextmanager
def _standing_still(model: PreTrainedModel) -> Iterator[None]:
    """With no weight taking a gradient and no dropout; on the meta device experts pass on what they get."""
    was_training, trained = model.training, [weight for weight in model.parameters() if weight.requires_grad]
    stubs = []
    model.eval()
    for weight in trained:
        weight.requires_grad_(False)
    if model.device.type == "meta":  # which expert a token goes to depends on values there are none of
        holders = {name.rpartition(".")[0] for name in find_expert_parameters(model)}
        stubs = [model.get_submodule(name) for name in holders]
    for stub in stubs:
        stub.forward = functools.partial(_pass_on)
    try:
        with torch.enable_grad():
            yield
    finally:
        for stub in stubs:
            del stub.forward
        for weight in trained:
            weight.requires_grad_(True)
        model.train(was_training)


def _pass_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden


def _describe_siblings(name: str) -> str | None:
    """The same for all experts of a layer: the name without its second number; None where it has no second one."""
    numbers = list(re.finditer(r"\.\d+\.", name))
    if len(numbers) < 2:
        return None
    last = numbers[-1]
    return name[: last.start()] + ".*." + name[last.end() :]


def _guess_reached(model: PreTrainedModel, names: set[str]) -> set[str]:
    decoder = model.get_decoder()
    inside = {id(module) for module in (model if decoder is None else decoder).modules()}
    return {name for name in names if id(model.get_submodule(name)) in inside}
