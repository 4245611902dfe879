"""Liger's kernels, which a job uses on CUDA where they are installed, are in the plan of its memory.

Liger can't be imported here, as it needs Triton. In its place are functions that allocate and keep what Liger 0.8.5's
`LigerRMSNormFunction` and `LigerSiLUMulFunction` do.
"""

import sys
from importlib.machinery import ModuleSpec
from types import MethodType, ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.models.llama import modeling_llama

from sft.config import SFTConfig
from sft.training.fake_step import Step
from sft.training.liger import can_use_liger
from sft.training.step_memory import measure_steps

HIDDEN, INNER, TOKENS = 256, 1024, 2048


class KernelInterface:
    """A kernel of Triton's."""

    def __getitem__(self, grid: Any) -> Any:
        raise AssertionError("a kernel was launched on tensors without data")


KERNEL = KernelInterface()


class RMSNorm(torch.autograd.Function):
    """Keeps x in its own dtype and 1 / RMS of each row in fp32; the gradient takes the place of the output's."""

    @staticmethod
    def forward(ctx, x, weight):
        rows = x.reshape(-1, x.shape[-1])
        out, scale = torch.empty_like(rows), torch.empty(len(rows), dtype=torch.float32, device=x.device)
        KERNEL[(len(rows),)](out, rows, weight, scale)
        ctx.save_for_backward(rows, weight, scale)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx, grad):
        KERNEL[(1,)](grad, *ctx.saved_tensors)
        return grad, None


class SiLUMul(torch.autograd.Function):
    """Keeps both factors, and writes their gradients in their place."""

    @staticmethod
    def forward(ctx, gate, up):
        out = torch.empty_like(gate)
        KERNEL[(1,)](gate, up, out)
        ctx.save_for_backward(gate, up)
        return out

    @staticmethod
    def backward(ctx, grad):
        gate, up = ctx.saved_tensors
        KERNEL[(1,)](grad, gate, up)
        return gate, up


def apply_to_instance(model, fused_linear_cross_entropy=True):
    assert not fused_linear_cross_entropy, "the head is ours or TRL's"
    modeling_llama.apply_rotary_pos_emb = lambda q, k, cos, sin, **_: (q, k)
    for module in model.modules():
        if isinstance(module, modeling_llama.LlamaRMSNorm):
            module.forward = MethodType(lambda self, x: RMSNorm.apply(x, self.weight), module)
        if isinstance(module, modeling_llama.LlamaMLP):
            module.forward = MethodType(
                lambda self, x: self.down_proj(SiLUMul.apply(self.gate_proj(x), self.up_proj(x))), module
            )


@pytest.fixture
def liger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Liger and Triton are installed."""
    for name, contents in {
        "triton": {},
        "triton.runtime": {},
        "triton.runtime.jit": {"KernelInterface": KernelInterface},
        "liger_kernel": {},
        "liger_kernel.transformers": {"_apply_liger_kernel_to_instance": apply_to_instance},
    }.items():
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    for place in ("sft.training.liger", "transformers.integrations.liger"):
        monkeypatch.setattr(f"{place}.is_liger_kernel_available", lambda: True)


def count_bytes(layers: int, layout: Any, kind: str) -> int:
    """Bytes of a step of a model with so many layers."""
    sizes = {"vocab_size": 500, "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": layers}
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(LlamaConfig(num_attention_heads=8, num_key_value_heads=2, **sizes))
    config = SFTConfig(base_model="m", dataset_name="x", dataset_format="alpaca", gradient_accumulation_steps=1)
    found = measure_steps(empty, config, [Step((TOKENS,), 0.1, layout, kind, torch.bfloat16, checkpointing=False)])
    assert found is not None
    return found[0].held


def count_layer(layout: Any, kind: str = "cuda") -> int:
    """Bytes that one more layer takes."""
    return count_bytes(3, layout, kind) - count_bytes(2, layout, kind)


@pytest.mark.parametrize("layout", ["documents", "trl"])
def test_a_plan_knows_what_ligers_kernels_do_not_keep(request, layout):
    plain, rotate = count_layer(layout), modeling_llama.apply_rotary_pos_emb
    request.getfixturevalue("liger")
    # Two norms keep their input in 2 bytes instead of in fp32, and SiLU's result (2 bytes each) is computed again.
    assert plain - count_layer(layout) == TOKENS * (2 * 2 * HIDDEN + 2 * INNER)
    assert modeling_llama.apply_rotary_pos_emb is rotate


@pytest.mark.parametrize(("layout", "kind"), [("documents", "cpu"), ("logits", "cuda")])
def test_a_plan_counts_the_models_own_layers_where_a_job_runs_them(request, layout, kind):
    plain = count_bytes(2, layout, kind)
    request.getfixturevalue("liger")
    assert count_bytes(2, layout, kind) == plain


@pytest.mark.parametrize(
    ("layout", "kind", "is_installed", "wanted"),
    [
        ("trl", "cuda", True, True),
        ("trl", "cuda", False, False),
        ("trl", "cpu", True, False),  # a model on a CPU that only TRL's own way computes right
        ("documents", "cuda", True, True),
        ("logits", "cuda", True, False),
    ],
)
@pytest.mark.usefixtures("liger")
def test_ligers_kernels_are_used_on_cuda_where_installed(monkeypatch, layout, kind, is_installed, wanted):
    monkeypatch.setattr("sft.training.liger.is_liger_kernel_available", lambda: is_installed)
    assert can_use_liger(layout, kind) is wanted


@pytest.mark.usefixtures("liger")
def test_liger_without_triton_is_not_used(monkeypatch):
    monkeypatch.setattr("sft.training.liger.importlib.util.find_spec", lambda name: None)
    assert not can_use_liger("documents", "cuda")
