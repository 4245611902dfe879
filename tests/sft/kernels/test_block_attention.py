"""Attention by blocks gives what SDPA gives: values and gradients, heads shared or not, at any length."""

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from sft.kernels.block_attention import BLOCK, attend_in_blocks, suits_blocks


def attend_with_sdpa(query, key, value, scale=None):
    """The reference, each key head repeated for its query heads."""
    key, value = (tensor.repeat_interleave(query.shape[0] // key.shape[0], 0) for tensor in (key, value))
    return scaled_dot_product_attention(query[None], key[None], value[None], is_causal=True, scale=scale)[0]


def make_heads(length, heads=6, groups=2, dtype=torch.float32):
    """Query, key and value, laid out in memory as a model gives them (tokens first)."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(length, count, 16) for count in (heads, groups, groups)]
    return [
        torch.randn(shape, generator=generator).to(dtype).transpose(0, 1).detach().requires_grad_() for shape in shapes
    ]


@pytest.mark.parametrize("length", [1, 5, BLOCK, BLOCK + 1, 3 * BLOCK - 7])
@pytest.mark.parametrize("groups", [6, 2, 1])
@pytest.mark.parametrize("scale", [None, 0.4])
def test_values_and_gradients_are_sdpas(length, groups, scale):
    heads = make_heads(length, groups=groups)
    weight = torch.randn(6, length, 16, generator=torch.Generator().manual_seed(0))
    found = attend_in_blocks(*heads, scale)
    gradients = torch.autograd.grad((found * weight).sum(), heads)
    wanted = attend_with_sdpa(*heads, scale)
    wanted_gradients = torch.autograd.grad((wanted * weight).sum(), heads)

    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for gradient, reference in zip(gradients, wanted_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [1, BLOCK - 28, BLOCK, BLOCK + 72, 4 * BLOCK - 5])
def test_in_bf16_it_is_as_near_to_the_truth_as_sdpa(length):
    heads = make_heads(length, dtype=torch.bfloat16)
    weight = torch.randn(6, length, 16, generator=torch.Generator().manual_seed(0))
    exact = [head.detach().float().requires_grad_() for head in heads]
    truth = torch.autograd.grad((attend_with_sdpa(*exact) * weight).sum(), exact)

    def distances(attend):
        gradients = torch.autograd.grad((attend(*heads).float() * weight).sum(), heads)
        return [
            float((found.float() - true).norm() / true.norm()) for found, true in zip(gradients, truth, strict=True)
        ]

    ours, theirs = distances(lambda *parts: attend_in_blocks(*parts, None)), distances(attend_with_sdpa)
    assert all(mine <= max(2 * other, 0.01) for mine, other in zip(ours, theirs, strict=True))


def test_what_is_not_plain_is_left_to_sdpa():
    query, key, value = (head[None] for head in make_heads(8, dtype=torch.bfloat16))
    layer = nn.Module()

    assert suits_blocks(layer, query, key, value, {"sliding_window": None, "dropout": 0.0})
    assert not suits_blocks(layer, query.float(), key.float(), value.float(), {})
    for options in ({"sliding_window": 4}, {"dropout": 0.1}, {"softcap": 30.0}, {"is_causal": False}):
        assert not suits_blocks(layer, query, key, value, options)
    layer.is_causal = False
    assert not suits_blocks(layer, query, key, value, {})
