"""A process loads its share of a model's layers, and never a whole one: shown for each of four, one after the other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

from sft.adapting.shardable import check_sharding
from sft.config import SFTConfig
from sft.errors import InvalidConfig
from sft.models.finite import find_broken_weight
from sft.models.loading import quiet_transformers
from sft.models.model_class import build_empty
from sft.models.sharding import average_the_rest, count_held_bytes, is_sharded, load_sharded
from tests.tiny_models import save_tiny_model

PROCESSES, LAYERS = 4, 12


class Sizes(TorchDispatchMode):
    """Notes how many numbers the tensors with data have that operations read or make."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor) and not isinstance(leaf, DTensor) and leaf.device.type != "meta":
                self.seen.add(leaf.numel())
        return out


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations read or make, as long as they have them."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, Any] = {}  # by address: a weak pointer, as FSDP empties storages and keeps them

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor) and not isinstance(leaf, DTensor):
                storage = leaf.untyped_storage()
                self._storages[storage._cdata] = storage._weak_ref()
        found = [torch.UntypedStorage._new_with_weak_ptr(pointer) for pointer in self._storages.values()]
        self.peak = max(self.peak, sum(storage.nbytes() for storage in found if storage is not None))
        return out


class OnGpus(Accelerator):
    """accelerate as it is where each of several processes has a GPU."""

    @property
    def multi_device(self) -> bool:
        """Whether it wraps models for several GPUs."""
        return True


@contextmanager
def as_process(rank: int) -> Iterator[DeviceMesh]:
    """This process as one of PROCESSES, of which the others do not exist."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=PROCESSES)
    try:
        yield DeviceMesh.from_group(dist.new_group(), "cpu")
    finally:
        dist.destroy_process_group()


def load_share(path: Path, rank: int) -> tuple[Any, Sizes]:
    kind = type(build_empty(path))
    with as_process(rank) as mesh, Sizes() as sizes:
        model, loading = load_sharded(
            kind, path, mesh, dtype=torch.bfloat16, generation_config=GenerationConfig(), use_safetensors=True
        )
    assert not loading["missing_keys"]
    assert type(model) is kind
    return model, sizes


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3"])
def test_the_shares_of_all_processes_are_the_model_and_none_reads_a_whole_layer(kind: str, tmp_path: Path) -> None:
    path = save_tiny_model(kind, tmp_path / kind)  # in fp32, so that each tensor is converted as it is read
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    shares = [load_share(path, rank) for rank in range(PROCESSES)]
    names = dict(whole.named_parameters())
    split = {name for name in names if ".layers." in name or ".h." in name}
    in_layers = sum(names[name].nbytes for name in split)
    outside = sum(weight.nbytes for name, weight in names.items() if name not in split)
    for model, sizes in shares:
        held = dict(model.named_parameters())
        assert {name for name, weight in held.items() if isinstance(weight, DTensor)} == split
        assert not any(weight.requires_grad for weight in held.values())
        assert is_sharded(model)
        assert count_held_bytes(model) == pytest.approx(outside + in_layers / PROCESSES, rel=0.01)
        # Tables outside of the layers are read whole. All else is at most a share of the largest matrix.
        tables = {weight.numel() for name, weight in names.items() if name not in split}
        most = max(names[name].numel() for name in split) // PROCESSES
        assert sizes.seen
        assert all(size <= most for size in sizes.seen - tables)
        for (name, buffer), (_, wanted) in zip(model.named_buffers(), whole.named_buffers(), strict=True):
            assert torch.equal(buffer, wanted), name
    for name, weight in names.items():
        parts = [dict(model.named_parameters())[name] for model, _ in shares]
        if name in split:
            assert torch.equal(torch.cat([part.to_local() for part in parts]), weight), name
        else:
            assert all(torch.equal(part, weight) for part in parts), name


def test_a_process_holds_three_whole_layers_while_it_computes(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "num_key_value_heads": 2}
    settings = LlamaConfig(vocab_size=64, num_hidden_layers=LAYERS, bos_token_id=None, eos_token_id=0, **sizes)
    LlamaForCausalLM(settings).save_pretrained(tmp_path)
    peaks = []
    with as_process(rank=1) as mesh:
        model, _ = load_sharded(LlamaForCausalLM, tmp_path, mesh, dtype=torch.bfloat16)
        held = count_held_bytes(model)
        layer = sum(weight.nbytes for weight in model.model.layers[0].parameters())
        assert held < LAYERS * layer // 2
        with quiet_transformers():
            adapted = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj", "down_proj"]))
        for _ in range(2):
            with Alive() as alive:
                adapted(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False).logits.float().sum().backward()
            peaks.append(alive.peak - held)
    # Beside its share three layers, and activations, adapters and gradients of half a layer.
    assert [peak / layer for peak in peaks] == pytest.approx([3, 3], abs=0.8)


def test_gradients_are_averaged_where_accelerate_refuses_split_weights(tmp_path: Path) -> None:
    path = save_tiny_model("llama", tmp_path / "llama")
    kind = type(build_empty(path))
    with as_process(rank=0) as mesh:
        model, _ = load_sharded(kind, path, mesh, dtype=torch.float32, generation_config=GenerationConfig())
        model.get_input_embeddings().requires_grad_(True)
        accelerator = OnGpus(cpu=True)
        with pytest.raises(ValueError, match="incompatible with DDP"):
            accelerator.prepare_model(model)
        average_the_rest(accelerator)
        wrapped = accelerator.prepare_model(model)
        assert isinstance(wrapped, DistributedDataParallel)
        table = model.get_input_embeddings().weight
        assert [weight for weight in wrapped._module_parameters if weight.requires_grad] == [table]


def test_a_broken_weight_is_found_in_the_own_share_without_the_others(tmp_path: Path) -> None:
    path = save_tiny_model("llama", tmp_path / "llama")
    model, _ = load_share(path, rank=2)
    assert find_broken_weight(model, with_trained=True) is None
    model.model.layers[1].mlp.up_proj.weight.to_local()[3, 5] = torch.nan
    assert find_broken_weight(model, with_trained=True) == "model.layers.1.mlp.up_proj.weight"


def test_models_that_cannot_be_split_are_refused_by_name(make_config: Callable[..., SFTConfig]) -> None:
    config = make_config(num_devices=2, shard_model=True)

    def build(**fields: Any) -> LlamaForCausalLM:
        with torch.device("meta"):
            sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_key_value_heads": 2}
            return LlamaForCausalLM(LlamaConfig(vocab_size=8, num_hidden_layers=2, **sizes, **fields))

    def build_twice() -> LlamaForCausalLM:
        model = build()
        model.model.others = torch.nn.ModuleList(model.model.layers)
        return model

    check_sharding(build, config)
    with pytest.raises(
        InvalidConfig, match="can't split base_model tiny, which has no single list of layers; set shard"
    ):
        check_sharding(build_twice, config)
    with pytest.raises(InvalidConfig, match=r"can't split base_model tiny, whose config.json drops layers at random"):
        check_sharding(lambda: build(layerdrop=0.1), config)
    check_sharding(build_twice, make_config())
