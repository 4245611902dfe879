"""`QuickDropout` drops as often as it says, each element for itself, and draws the same again from the same state."""

import pytest
import torch
from torch import Tensor

from sft.kernels.dropout import QuickDropout, quantize

COUNT = 1_000_003  # not a multiple of the four that share a number


def drop(rate: float, shape: tuple[int, ...] = (COUNT,), dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(5)
    dropped: Tensor = QuickDropout(rate)(torch.ones(shape, dtype=dtype))
    return dropped


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.1, 1 / 3, 0.5, 0.9])
def test_the_share_dropped_is_the_rate_and_the_mean_stays(rate: float) -> None:
    dropout = QuickDropout(rate)
    assert abs(dropout.p - rate) <= 0.5 / 65536
    found = drop(rate)
    spread = (dropout.p * (1 - dropout.p) / COUNT) ** 0.5
    assert abs(float((found == 0).double().mean()) - dropout.p) < 4 * spread
    assert found.unique().tolist() == pytest.approx([0.0, 1 / (1 - dropout.p)], rel=1e-6)
    assert abs(float(found.double().mean()) - 1) < 4 * spread / (1 - dropout.p)


def test_elements_are_dropped_for_themselves() -> None:
    """Those that share a number, too: what is dropped next to, or n elements after, a dropped one is as often."""
    gone = (drop(0.1) == 0).double()
    for distance in (1, 2, 3, 4, 8, 64):
        both = float((gone[:-distance] * gone[distance:]).mean())
        assert both == pytest.approx(0.01, abs=4 * (0.01 * 0.99 / COUNT) ** 0.5)
    for place in range(4):
        assert float(gone[place::4].mean()) == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / (COUNT / 4)) ** 0.5)


def test_the_state_of_torchs_generator_says_what_is_dropped() -> None:
    dropout, x = QuickDropout(0.2), torch.ones(5, 7)
    torch.manual_seed(1)
    first, state = dropout(x), torch.get_rng_state()
    second = dropout(x)
    torch.set_rng_state(state)
    assert torch.equal(dropout(x), second)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3,), (2, 3, 5), (0, 4)])
def test_values_and_gradients_are_those_of_the_mask(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    mask = drop(0.5, shape, dtype)
    x = torch.randn(shape, dtype=dtype).transpose(0, -1).contiguous().transpose(0, -1).requires_grad_()
    torch.manual_seed(5)
    found = QuickDropout(0.5)(x)
    grad = torch.randn(shape, dtype=dtype)
    found.backward(grad)
    assert torch.equal(found, x * mask)
    assert x.grad is not None
    assert torch.equal(x.grad, grad * mask)


def test_what_is_dropped_is_zero_whatever_it_was() -> None:
    torch.manual_seed(0)
    found = QuickDropout(0.5)(torch.full((64,), float("nan")))
    assert set(found[~found.isnan()].tolist()) == {0.0}


def test_without_training_or_rate_nothing_is_dropped_or_drawn() -> None:
    x, state = torch.randn(9), torch.get_rng_state()
    assert QuickDropout(0.5).eval()(x) is x
    assert QuickDropout(0.0)(x) is x
    assert QuickDropout(1e-7)(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_a_rate_near_one_keeps_something_to_scale() -> None:
    assert quantize(0.9999999) == 65535 / 65536
