"""Parts of a training step that need data or a GPU, replaced by ones that allocate the same, for `fake_step`."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from peft.tuners.lora import dora
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import PreTrainedModel
from trl.kernels import chunked_logprob
from trl.trainer import utils as trl_utils

from sft.kernels import block_attention, dropout, fused_lora, loss, packing

BLOCK_ROWS, WIDTH_STEP = 128, 32  # FlashAttention rounds documents and heads up to these, in its own sums
QUANTIZED_BLOCK = 64  # weights that share a scale of one byte (double quantization)


@contextmanager
def standing_in(kind: str) -> Iterator[None]:
    """Replace what a step on this kind of device can't do with fake tensors on the CPU."""
    blocks = block_attention._blocks
    with ExitStack() as stack:
        # Every block of queries takes and frees the same; the last one takes most.
        stack.enter_context(patch.object(block_attention, "_blocks", lambda length: blocks(length)[-1:]))
        # So does every chunk of logits, beside what the one before it leaves.
        chunks = loss.cut_chunks
        stack.enter_context(patch.object(loss, "cut_chunks", lambda count, size: chunks(count, size)[:2]))
        stack.enter_context(patch.object(dora, "dequantize_module_weight", _unpack))
        if kind == "cuda":
            stack.enter_context(patch.object(packing, "suits_blocks", lambda *_: False))
            stack.enter_context(patch.object(nn.functional, "dropout", _drop))
            count = loss.count_chunk_positions
            on_gpu = torch.device("cuda")
            stack.enter_context(patch.object(loss, "count_chunk_positions", lambda _, size: count(on_gpu, size)))
            stack.enter_context(patch.object(dropout.QuickDropout, "forward", _drop_quickly))
            stack.enter_context(patch.object(fused_lora, "draw_kept", _draw))
            stack.enter_context(patch.object(fused_lora, "spread", lambda kept, dtype: kept))
            for module in (chunked_logprob, trl_utils):
                stack.enter_context(patch.object(module, "_use_triton", lambda _: True))
            for name in ("_forward_kernel", "_backward_kernel"):
                stack.enter_context(patch.object(chunked_logprob, name, _Kernel(), create=True))
            ceiling = SimpleNamespace(cdiv=lambda a, b: -(-a // b))
            stack.enter_context(patch.object(chunked_logprob, "triton", ceiling, create=True))
            stack.enter_context(patch.object(chunked_logprob, "_addmm_fp32", lambda *_: None))
        yield


def pack_linear_layers(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Replace the linear layers that QLoRA quantizes, all but the head, with `PackedLinear`."""
    head = model.get_output_embeddings()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear and child is not head:
                setattr(module, name, PackedLinear(child, dtype))


def count_workspace(func: Any, args: Any) -> int:
    """Bytes that an operation takes while it runs, beside its results, which its form for fake tensors leaves out.

    The backward pass of FlashAttention 2 (torch's variable-length attention, and its own package) sums the gradient of
    the queries in fp32, keeps a row's sum of O dO, and has keys and values of every head where heads share them.
    """
    if getattr(func, "_name", "") != "torch_attn::_varlen_attn_backward":
        return 0
    query, key, bounds = args[1], args[2], args[6]  # (T, H, Dh), (T, Hkv, Dh), (documents + 1,)
    tokens, heads, width = query.shape
    rounded = tokens + BLOCK_ROWS * (bounds.shape[0] - 1)
    sums = 4 * rounded * heads * (-(-width // WIDTH_STEP) * WIDTH_STEP + 1)
    expanded = 2 * tokens * heads * width * query.element_size() if heads != key.shape[1] else 0
    return int(sums + expanded)


class PackedLinear(nn.Linear):  # type: ignore[misc]  # torch is untyped here
    """A linear layer whose weight is stored in 4 bits, as bitsandbytes' `Linear4bit` allocates.

    The weight is unpacked for each product, in the forward and again in the backward pass.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        count = layer.weight.numel()
        size = count // 2 + count // QUANTIZED_BLOCK
        self.weight = nn.Parameter(torch.empty(size, 1, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.bias = layer.bias
        self.compute_dtype = dtype

    def forward(self, input: Tensor) -> Tensor:
        """x W' + bias."""
        out: Tensor = _PackedProduct.apply(
            input.to(self.compute_dtype), self.weight, self.in_features, self.out_features
        )
        return out if self.bias is None else out + self.bias


class _PackedProduct(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """y = x W' with W (O, I) unpacked for the product; dx = g W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, inputs: int, outputs: int) -> Tensor:
        ctx.shape = outputs, inputs
        ctx.save_for_backward(packed)
        return x @ x.new_empty(outputs, inputs).T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0] @ grads[0].new_empty(ctx.shape), None, None, None


def _unpack(layer: nn.Module) -> Tensor:
    """The weight (O, I) of a layer for DoRA's norm, in the dtype of the computation if it is packed."""
    if isinstance(layer, PackedLinear):
        shape = layer.out_features, layer.in_features
        return torch.empty(shape, dtype=layer.compute_dtype, device=layer.weight.device)
    weight: Tensor = dequantize_module_weight(layer)
    return weight


def _drop(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Dropout as on a GPU, which keeps a mask of one byte an element; on a CPU torch keeps numbers of x's dtype."""
    return torch.native_dropout(input, p, training)[0] if training and p else input


def _drop_quickly(module: dropout.QuickDropout, x: Tensor) -> Tensor:
    """`QuickDropout` on a GPU."""
    return _drop(x, module.p, module.training)


def _draw(shape: torch.Size, p: float, device: torch.device) -> Tensor:
    """The mask of our own dropout on a GPU."""
    return torch.empty(shape, dtype=torch.bool)


class _Kernel:
    """A Triton kernel that works in place: launched, it allocates nothing."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **kwargs: None
