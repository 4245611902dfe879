import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from sft.kernels.loss import (
    CHUNK_POSITIONS,
    count_chunk_positions,
    find_supervised_positions,
    sum_supervised_nll,
)


@pytest.mark.parametrize("positions", [1, CHUNK_POSITIONS, 2 * CHUNK_POSITIONS + 37])
@pytest.mark.parametrize("has_bias", [False, True])
def test_loss_and_gradients_are_those_of_cross_entropy(positions: int, has_bias: bool) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(positions, 32, requires_grad=True)
    head = torch.randn(101, 32, requires_grad=True)
    bias = torch.randn(101, requires_grad=True) if has_bias else None
    targets = torch.randint(101, (positions,))
    inputs = [tensor for tensor in (hidden, head, bias) if tensor is not None]

    expected = cross_entropy(linear(hidden, head, bias), targets, reduction="sum") / 7
    found = sum_supervised_nll(hidden, head, bias, targets) / 7
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for mine, reference in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-5)


def test_a_frozen_head_gets_no_gradient() -> None:
    hidden = torch.randn(5, 8, requires_grad=True)
    head = torch.randn(11, 8)
    sum_supervised_nll(hidden, head, None, torch.randint(11, (5,))).backward()
    assert hidden.grad is not None
    assert head.grad is None


def test_bf16_states_lose_no_more_than_bf16_does() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(300, 32, dtype=torch.bfloat16, requires_grad=True)
    head = torch.randn(101, 32, dtype=torch.bfloat16)
    targets = torch.randint(101, (300,))
    exact = hidden.detach().double().requires_grad_()
    expected = cross_entropy(exact @ head.double().T, targets, reduction="sum")
    found = sum_supervised_nll(hidden, head, None, targets)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=0.0)
    (mine,), (reference,) = torch.autograd.grad(found, hidden), torch.autograd.grad(expected, exact)
    assert (mine.double() - reference).norm() < 2e-2 * reference.norm()


def test_no_position_gives_a_zero_that_can_be_differentiated() -> None:
    hidden = torch.randn(0, 8, requires_grad=True)
    total = sum_supervised_nll(hidden, torch.randn(11, 8), None, torch.zeros(0, dtype=torch.int64))
    total.backward()
    assert total.item() == 0.0
    assert hidden.grad is not None
    assert hidden.grad.shape == (0, 8)


def test_a_gpu_scores_more_positions_at_once_and_never_more_logits_than_fit() -> None:
    gpu = torch.device("cuda")
    assert count_chunk_positions(torch.device("cpu"), 151_936) == CHUNK_POSITIONS
    assert count_chunk_positions(gpu, 32_000) == 2048
    assert count_chunk_positions(gpu, 151_936) == 384
    assert count_chunk_positions(gpu, 10**9) == CHUNK_POSITIONS


def test_positions_that_a_collator_found_are_those_of_the_labels() -> None:
    labels = torch.tensor([[7, -100, 5, 6], [-100, -100, 3, -100]])
    assert find_supervised_positions(labels).tolist() == [1, 2, 4]  # places in (2, 3) that come before 5, 6 and 3
