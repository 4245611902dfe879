"""Splits a model's layers over the processes that train it, by FSDP2 (`torch.distributed.fsdp.fully_shard`).

Each process keeps its share of every layer; a layer's weights are gathered just before it computes, forward and
backward, and let go after it. They are frozen: what is trained, an adapter, is small, and each process has all of it,
as without sharding. So checkpoints, adapters and optimizers are those of an unsharded run.
"""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from sft.errors import InvalidConfig
from sft.models.layer_stack import get_stack


def join_processes() -> DeviceMesh:
    """The processes that train together, as the place that weights are split over; called once in each of them."""
    has_gpu = torch.cuda.is_available()
    PartialState(cpu=not has_gpu)  # joins the group that the trainer will use
    # A group of its own: gathering would else take turns with DistributedDataParallel's averaging.
    return DeviceMesh.from_group(torch.distributed.new_group(), "cuda" if has_gpu else "cpu")


def load_sharded(kind: type[PreTrainedModel], path: Path, mesh: DeviceMesh, **options: Any) -> tuple[Any, Any]:
    """`from_pretrained` of a model class, with its layers split: each process reads its share of them from the files.

    The rest, embeddings and head, is whole in each process. No process holds a whole layer before it computes one.

    Returns the model, whose weights are frozen, and transformers' report of the loading.

    Raises:
        InvalidConfig: the model can't be split.
    """

    subject = f"base_model {path.name}"

    class Sharded(kind):  # type: ignore[misc]
        """Splits its layers while they have no weights, which transformers then loads share by share."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            shard_layers(self, mesh, subject)

    Sharded.__name__, Sharded.__qualname__, Sharded.__module__ = kind.__name__, kind.__qualname__, kind.__module__
    model, loading = Sharded.from_pretrained(path, output_loading_info=True, **options)
    model.__class__ = kind
    model.requires_grad_(False)  # FSDP would average the gradients of others
    _order_gathering(get_stack(model, subject).owner, mesh)
    return model, loading


def shard_layers(model: PreTrainedModel, mesh: DeviceMesh, subject: str) -> None:
    """Split each layer's weights, which may have no data yet. Raises InvalidConfig."""
    stack = get_stack(model, subject)
    try:
        for layer in stack.layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    except Exception as error:
        raise InvalidConfig(
            f"shard_model can't split {subject} ({str(error).partition(chr(10))[0]:.200}); set shard_model to false"
        ) from error


def agree(wish: bool, kind: str) -> bool:
    """Whether any process wishes it: they gather a split model's layers together, and so must take the same way.

    Args:
        kind: `cpu` or `cuda`.
    """
    wishes = torch.tensor(float(wish), device=kind)
    torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX)
    return bool(wishes)


def is_sharded(model: nn.Module) -> bool:
    """Whether some of a model's weights are split over the processes."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def count_held_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights that this process holds."""
    weights = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in model.parameters()]
    return sum(weight.nbytes for weight in weights)


def average_the_rest(accelerator: Accelerator) -> None:
    """Let DistributedDataParallel average the gradients of what is not split.

    accelerate would do so on a CPU alone: on GPUs it refuses any model with split weights.
    """
    prepare = accelerator.prepare_model

    def prepare_model(model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False) -> Any:
        prepared = prepare(model, device_placement=False, evaluation_mode=True)
        if evaluation_mode or isinstance(prepared, DistributedDataParallel):
            return prepared
        split = [name for name, weight in prepared.named_parameters() if isinstance(weight, DTensor)]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(prepared, split)  # it would copy them
        device = accelerator.device
        wrapped = DistributedDataParallel(
            prepared,
            device_ids=None if device.type == "cpu" else [device],
            **(accelerator.ddp_handler.to_kwargs() if accelerator.ddp_handler else {}),
        )
        accelerator._models[-1] = wrapped
        return wrapped

    accelerator.prepare_model = prepare_model


def _order_gathering(owner: nn.Module, mesh: DeviceMesh) -> None:
    """Let the module that runs the layers, which has no share of its own, gather one while another computes."""
    kind = type(owner)
    whole = {weight for weight in owner.parameters() if not isinstance(weight, DTensor)}
    fully_shard(owner, mesh=mesh, ignored_params=whole)
    type(owner).__module__ = kind.__module__  # transformers reads the source of a model's class
    # At the first forward pass otherwise, which may be a trial of the first layers alone.
    fully_shard.state(owner)._lazy_init()
