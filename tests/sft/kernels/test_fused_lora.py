"""LoRA's layer in one node gives what PEFT's gives: values, gradients, and PEFT's own way where it must."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import layer as lora
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from sft.kernels.dropout import QuickDropout
from sft.kernels.fused_lora import fuse_adapters, replace_dropout
from sft.models.loading import quiet_transformers


def build_model(**options):
    """A tiny Llama with adapters whose B is not zero."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 64}
    base = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, attention_bias=True, **shape))
    with quiet_transformers():
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def run(model: nn.Module, seed: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a fixed batch and every adapter's gradient."""
    torch.manual_seed(seed)
    ids = torch.randint(0, 64, (2, 9))
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"lora_dropout": 0.3}])
def test_loss_and_gradients_are_pefts(options):
    model = build_model(**options).train()
    replace_dropout(model)  # which draws the same in both
    wanted_loss, wanted = run(model)

    assert fuse_adapters(model) == 14
    loss, gradients = run(model)

    torch.testing.assert_close(loss, wanted_loss, rtol=1e-6, atol=0)
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-7, msg=name)


def test_gradients_reach_what_lies_before_the_adapter():
    model = build_model()
    embeddings = model.get_input_embeddings()
    embeddings.weight.requires_grad_(True)
    wanted = run(model)[1]

    fuse_adapters(model)
    gradients = run(model)[1]

    name = next(name for name in gradients if "embed_tokens" in name)
    torch.testing.assert_close(gradients[name], wanted[name], rtol=1e-4, atol=1e-7)


def test_disabled_and_merged_adapters_go_pefts_way():
    model = build_model().eval()
    ids = torch.arange(12)[None]
    plain = copy.deepcopy(model.get_base_model())
    fuse_adapters(model)

    with torch.no_grad():
        adapted = model(input_ids=ids).logits
        with model.disable_adapter():
            disabled = model(input_ids=ids).logits
        model.merge_adapter()
        merged = model(input_ids=ids).logits

    for module in plain.modules():
        if isinstance(module, lora.Linear):
            module.enable_adapters(False)
    torch.testing.assert_close(disabled, plain(input_ids=ids).logits)
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(disabled, adapted, atol=1e-3)


def test_variants_are_left_alone_but_for_their_dropout():
    model = build_model(use_dora=True, lora_dropout=0.3).train()
    assert fuse_adapters(model) == 0
    dropouts = [module for module in model.modules() if isinstance(module, QuickDropout)]
    assert len(dropouts) == 14
    assert {round(dropout.p, 4) for dropout in dropouts} == {0.3}
    first, second = run(model, seed=1)[0], run(model, seed=2)[0]
    assert not torch.equal(first, second)


def test_dropout_is_for_training_alone():
    model = build_model(lora_dropout=0.3).eval()
    wanted = run(model)[0]
    fuse_adapters(model)
    torch.testing.assert_close(run(model)[0], wanted, rtol=1e-6, atol=0)


def test_in_bf16_it_is_as_near_to_the_truth_as_pefts():
    model = build_model()
    truth = run(model)[1]
    model.get_base_model().to(torch.bfloat16)
    theirs = run(model)[1]
    fuse_adapters(model)
    ours = run(model)[1]

    def distance(gradients: dict[str, Tensor]) -> float:
        return sum(float((gradients[name].float() - truth[name]).norm() / truth[name].norm()) for name in truth)

    assert distance(ours) <= 1.5 * distance(theirs)


def test_a_gpus_masks_give_the_same_values_and_gradients(monkeypatch):
    """On a GPU a mask is a product with booleans instead of a bitwise and."""
    model = build_model(lora_dropout=0.3).train()
    fuse_adapters(model)
    wanted_loss, wanted = run(model)
    monkeypatch.setattr("sft.kernels.fused_lora.spread", lambda kept, dtype: kept)
    loss, gradients = run(model)
    assert torch.equal(loss, wanted_loss)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, wanted[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layer_on_a_device_without_a_cpus_tricks_has_the_same_shapes(dtype):
    model = build_model(lora_dropout=0.3).train()
    fuse_adapters(model)
    layer = next(module for module in model.modules() if type(module) is lora.Linear)
    layer.to("meta").base_layer.to(dtype)
    x = torch.empty(2, 9, layer.in_features, dtype=dtype, device="meta", requires_grad=True)
    y = layer(x)
    assert (y.shape, y.dtype) == ((2, 9, layer.out_features), dtype)
    y.sum().backward()
    assert (x.grad.shape, x.grad.dtype) == (x.shape, dtype)
    for low in (layer.lora_A["default"], layer.lora_B["default"]):
        assert (low.weight.grad.shape, low.weight.grad.dtype) == (low.weight.shape, torch.float32)
