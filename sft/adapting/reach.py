"""Which layers a row of text passes through, and carries a gradient back to: found by trying."""

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

from sft.errors import ModelNotSupported
from sft.models.experts import find_expert_parameters, is_expert_list

TRIAL_TOKENS = 12
MOST_TRIES = 8  # of a training pass, which may leave out layers at random (LayerDrop)
UNMASKED = "sdpa_unmasked"


class Reach(NamedTuple):
    """Layers that a row of text passes through; those whose result is `odd` can't carry an adapter.

    Where `is_guess`, there may be fewer.
    """

    reached: set[str]
    odd: set[str]
    is_guess: bool = False


def find_reached(model: PreTrainedModel, names: set[str]) -> Reach:
    """Those of the named layers that take part in what a row of text gives, and get a gradient for it.

    A vision tower gets no row of text. `odd` are those that give something else than a linear layer does, as a router
    that returns a tuple. Of the experts of a layer, which are alike, all count as reached when one is: a short text
    comes to few of them.

    The model may be empty (on the meta device). Where nothing can be computed there, what belongs to the decoder
    counts as reached.

    Raises ModelNotSupported where a pass forward and backward is not possible.
    """
    try:
        reached, odd = _pass_through(model, names)
    except Exception as error:
        if not _is_empty(model):
            lines = str(error).strip().splitlines() or [type(error).__name__]
            name = model.name_or_path.rstrip("/").rpartition("/")[2]
            raise ModelNotSupported(
                f"base_model {name} gives no gradient for a row of text: {lines[0].partition('. ')[0]}"
            ) from error
        try:  # some can't do without a mask
            mask = torch.ones(1, 1, TRIAL_TOKENS, TRIAL_TOKENS, dtype=torch.bool, device="meta")
            reached, odd = _pass_through(model, names, attention_mask=mask)
        except Exception:  # of whatever kind: it computes with values that are not there
            return Reach(_guess_reached(model, names), set(), is_guess=True)
    siblings = {name: _describe_siblings(model, name) for name in names}
    found = {siblings[name] for name in reached} - {None}
    return Reach({name for name in names - odd if name in reached or siblings[name] in found}, odd)


def _pass_through(model: PreTrainedModel, names: set[str], **inputs: Tensor) -> tuple[set[str], set[str]]:
    reached: set[str] = set()
    odd: set[str] = set()
    with _standing_still(model), ExitStack() as hooks:
        for name in names:
            hooks.callback(model.get_submodule(name).register_forward_hook(_mark(name, reached, odd)).remove)
        output = model(input_ids=draw_text(model, TRIAL_TOKENS), use_cache=False, **inputs)
        output.logits.float().logsumexp(dim=-1).sum().backward()
        hooks.close()
        return reached - _find_passed_by(model, reached, **inputs), odd


def _find_passed_by(model: PreTrainedModel, names: set[str], **inputs: Tensor) -> set[str]:
    """Those that training computes without, by taking their weights past them and past any adapter of theirs."""
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
    except Exception:  # of whatever kind: training is tried as a whole before the first step
        return set()
    finally:
        model.eval()
    return left


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
            return None  # of which an adapter could learn nothing
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
    if is_empty := _is_empty(model):  # which expert a token goes to depends on values there are none of
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
    """Transformers reads values to see which mask of attention it can do without, and of padding tokens."""
    AttentionInterface.register(UNMASKED, _attend)  # that no mask is known for
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    before = [(vars(config), dict(vars(config))) for config in configs.values()]
    for values, _ in before:  # past the configurations' own validation
        values.update({name: None for name in ("pad_token_id",) if name in values})
        values["_attn_implementation_internal"] = UNMASKED
    try:
        yield
    finally:
        for values, old in before:
            values.update(old)


def _attend(module: nn.Module, *states: Any, softcap: Any = None, **kwargs: Any) -> Any:
    """SDPA, with what else a model attends with, as sinks; a cap of its scores changes nothing of what passes where."""
    output, weights = sdpa_attention_forward(module, *states, **kwargs)
    return output + _sum_learning(kwargs.values()), weights


def _is_empty(model: PreTrainedModel) -> bool:
    return any(parameter.device.type == "meta" for parameter in model.parameters())


def _pass_on(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What experts get, with what they are weighted by."""
    return hidden + _sum_learning([*args, *kwargs.values()])


def _sum_learning(values: Iterable[Any]) -> Tensor | int:
    """Of those tensors that a gradient goes back from."""
    return sum(value.sum() for value in values if isinstance(value, Tensor) and value.requires_grad)


def _describe_siblings(model: PreTrainedModel, name: str) -> str | None:
    """The same for all experts of a layer: the name without the expert's number; None for what is in no expert."""
    for number in re.finditer(r"\.\d+\.", name):
        if is_expert_list(model, name[: number.start()]):
            return name[: number.start()] + ".*." + name[number.end() :]
    return None


def _guess_reached(model: PreTrainedModel, names: set[str]) -> set[str]:
    try:
        decoder = model.get_decoder()
    except Exception:  # it knows of none
        decoder = None
    inside = {id(module) for module in (model if decoder is None else decoder).modules()}
    return {name for name in names if id(model.get_submodule(name)) in inside}
