"""Cross-entropy over the supervised positions only, holding the logits of one chunk at a time."""

from typing import Any

import torch
from accelerate.utils import is_peft_model
from torch import Tensor, nn

CHUNK_POSITIONS = 128  # keeps a chunk's probabilities in cache: 128 x V = 49,152 in fp32 is 25 MB
CHUNK_LOGITS_ON_GPU = 2**26  # enough for matrix products to reach their full speed; 270 MB in fp32
POSITIONS = "supervised_positions"  # of a batch: places in the flattened (B, T-1) that predict a supervised token


def sum_nll(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Summed negative log-likelihood of a batch's supervised tokens, and their number; two scalars.

    Runs the backbone on every token and the head on the positions that predict a supervised one.
    """
    causal: Any = model.get_base_model() if is_peft_model(model) else model
    positions, targets = _find_supervised(inputs)
    hidden = causal.base_model(**_keep_features(inputs)).last_hidden_state[:, :-1]  # (B, T-1, D)
    states = hidden.flatten(0, 1).index_select(0, positions)  # (N, D)
    head = causal.get_output_embeddings()
    # W (V, D), b (V,), targets (N,)
    total = sum_supervised_nll(states, head.weight, head.bias, targets)
    return total, _count(positions, total.device)


def sum_logits_nll(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """`sum_nll` from the logits of the model's own forward pass, for heads that are more than one matrix."""
    positions, targets = _find_supervised(inputs)
    logits = model(**_keep_features(inputs)).logits[:, :-1]  # (B, T-1, V)
    learned = logits.flatten(0, 1).index_select(0, positions.to(logits.device))  # (N, V)
    total = nn.functional.cross_entropy(learned.float(), targets.to(logits.device), reduction="sum")
    return total, _count(positions, total.device)


def sum_fused_nll(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """`sum_nll` through TRL's fused head."""
    outputs = model(**_keep_features(inputs), labels=inputs["labels"], fused_lm_head=True)
    return -outputs.log_probs.sum(), outputs.label_mask.sum()


def find_supervised_positions(labels: Tensor) -> Tensor:
    """Places in the flattened (B, T-1) that predict a supervised token, from labels (B, T). (N,)

    On a GPU this waits for the device, as N has to be known: collators call it for batches in main memory.
    """
    return (labels[:, 1:].flatten() != -100).nonzero().squeeze(1)


def _find_supervised(inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Supervised positions and the tokens they predict. (N,) each"""
    labels = inputs["labels"]
    positions = inputs[POSITIONS] if POSITIONS in inputs else find_supervised_positions(labels)
    return positions, labels[:, 1:].flatten().index_select(0, positions)


def _keep_features(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in ("labels", POSITIONS)} | {"use_cache": False}


def _count(positions: Tensor, device: torch.device) -> Tensor:
    return torch.full((), len(positions), device=device)  # a copy from main memory would wait for the device


def count_chunk_positions(device: torch.device, vocabulary: int) -> int:
    """Positions whose logits are held at once: a multiple of CHUNK_POSITIONS."""
    if device.type == "cpu":
        return CHUNK_POSITIONS
    return max(CHUNK_LOGITS_ON_GPU // vocabulary // CHUNK_POSITIONS, 1) * CHUNK_POSITIONS


def cut_chunks(positions: int, size: int) -> list[slice]:
    """Slices of at most `size` positions, in order."""
    return [slice(start, start + size) for start in range(0, positions, size)]


def sum_supervised_nll(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Sum over positions of -log softmax(hidden @ head.T + bias)[target], in fp32.

    With logits Z = H W' + b and P = softmax(Z): dZ = P - onehot(target), dH = dZ W, dW = dZ' H, db = colsum(dZ).
    dZ is known as soon as the loss is, so the forward pass computes the gradients chunk by chunk; each chunk's logits
    are computed once and never stored.

    Args:
        hidden: last hidden states that predict `targets`. (N, D)
        head: weight of the output embedding. (V, D)
        bias: its bias, if it has one. (V,)
        targets: token ids. (N,)
    """
    if not torch.is_grad_enabled():  # `needs_input_grad` is true under no_grad as well
        hidden, head, bias = hidden.detach(), head.detach(), None if bias is None else bias.detach()
    total: Tensor = _SupervisedNLL.apply(hidden, head, bias, targets)
    return total


class _SupervisedNLL(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Computes loss and gradients in the forward pass; the backward pass scales them by dL/dtotal, a scalar."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
        needs_hidden, needs_head, needs_bias = ctx.needs_input_grad[:3]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hidden_grad = torch.empty_like(hidden) if needs_hidden else None  # (N, D)
        # Sums over all chunks, so in fp32: (V, D), (V,)
        head_grad = torch.zeros_like(head, dtype=torch.float32) if needs_head else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if needs_bias and bias is not None else None
        for chunk in cut_chunks(hidden.shape[0], count_chunk_positions(hidden.device, head.shape[0])):
            states, wanted = hidden[chunk], targets[chunk, None]  # (C, D), (C, 1)
            logits = nn.functional.linear(states, head, bias)  # Z: (C, V)
            grad = torch.softmax(logits, dim=-1, dtype=torch.float32)  # P: (C, V)
            # log sum exp(z) = z_max - log P_max: no second pass over V, and P_max >= 1 / V can't underflow.
            highest, at = logits.max(dim=-1, keepdim=True)  # (C, 1) each
            log_norm = highest.float() - grad.gather(1, at).log()  # (C, 1)
            total += (log_norm - logits.gather(1, wanted).float()).sum()  # log sum exp(z) - z[target]
            if hidden_grad is None and head_grad is None and bias_grad is None:
                continue
            grad.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=grad.dtype))  # dZ = P - onehot, in place
            if bias_grad is not None:
                bias_grad += grad.sum(0)  # (V,)
            narrow = grad.to(head.dtype)  # dZ: (C, V)
            if hidden_grad is not None:
                hidden_grad[chunk] = narrow @ head  # dH = dZ W: (C, D)
            if head_grad is not None:
                head_grad += narrow.T @ states.to(head.dtype)  # dW = dZ' H: (V, D)
        ctx.save_for_backward(hidden_grad, head_grad, bias_grad)
        ctx.dtypes = (hidden.dtype, head.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = outputs[0]  # dL/dtotal: ()
        grads = (
            None if grad is None else (grad * scale).to(dtype)
            for grad, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return *grads, None
