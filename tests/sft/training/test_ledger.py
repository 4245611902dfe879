"""Results that a ledger remembers are those that torch would find anew."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM

from sft.config import SFTConfig
from sft.training import ledger as ledger_module
from sft.training.fake_step import Step
from sft.training.ledger import Ledger
from sft.training.step_memory import measure_steps

SMALL = {"vocab_size": 500, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
MODELS = {
    "llama": {**SMALL, "model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 2},
    "gemma3": {
        **{**SMALL, "model_type": "gemma3_text", "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
        **{"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
    },
}


@pytest.mark.parametrize(
    ("model", "kind", "fields"),
    [
        ("llama", "cpu", {"use_dora": True, "gradient_checkpointing": True}),
        ("llama", "cuda", {}),
        ("gemma3", "cpu", {}),
        ("gemma3", "cuda", {"use_lora": False}),
    ],
)
def test_a_step_takes_what_it_takes_without_remembering(model, fields, kind, monkeypatch):
    config = SFTConfig(base_model="m", dataset_name="x", dataset_format="alpaca", **fields)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.for_model(**MODELS[model]))
    recomputes = config.gradient_checkpointing is True
    steps = [
        Step(lengths, 0.5, "documents", kind, torch.bfloat16, recomputes) for lengths in ((30, 20), (30, 20, 30, 20))
    ]
    asked = []
    dispatch = FakeTensorMode.dispatch
    monkeypatch.setattr(
        FakeTensorMode, "dispatch", lambda self, func, *rest: (asked.append(func), dispatch(self, func, *rest))[1]
    )
    found = measure_steps(empty, config, steps)
    count = len(asked)
    monkeypatch.setattr(ledger_module, "describe_call", lambda *call: None)
    assert found is not None
    assert measure_steps(empty, config, steps) == found
    assert len(asked) - count > 3 * count  # most results were remembered


def try_twice(call):
    """Call on fresh fake tensors twice within a ledger, which remembers the first result; and where they lie."""
    facts = []
    with FakeTensorMode() as mode, Ledger(mode) as ledger:
        for _ in range(2):
            first, second = torch.empty(4, 6), torch.empty(4, 6)
            before = ledger.alive
            out = call(first, second)
            storages = {first.untyped_storage()._cdata: "first", second.untyped_storage()._cdata: "second"}
            place = storages.get(out.untyped_storage()._cdata, "own")
            shape = (tuple(out.shape), out.stride(), out.storage_offset(), out.dtype)
            facts.append((place, out is first, out is second, shape, tuple(first.shape), ledger.alive - before))
            assert isinstance(out, FakeTensor)
            del out
    return facts


@pytest.mark.parametrize(
    ("call", "place"),
    [
        (lambda a, b: a + b, "own"),
        (lambda a, b: a.t(), "first"),
        (lambda a, b: a[1:, 2], "first"),
        (lambda a, b: a.add_(b), "first"),
        (lambda a, b: torch.add(a, 1, out=b), "second"),
        (lambda a, b: torch.mul(b, 2, out=b), "second"),
        (lambda a, b: b.view_as(a), "second"),
        (lambda a, b: a.unsqueeze_(0), "first"),
        (lambda a, b: a.resize_(2, 3), "first"),
        (lambda a, b: a.chunk(2)[1], "first"),
        (lambda a, b: torch.empty_strided((2, 3), (8, 1)), "own"),
        (lambda a, b: a.expand(3, 4, 6), "first"),
    ],
)  # fmt: skip
def test_a_remembered_result_is_as_the_first_one(call, place):
    first, again = try_twice(call)
    assert again == first
    assert first[0] == place


def test_numbers_of_another_type_give_another_result():
    with FakeTensorMode() as mode, Ledger(mode):
        whole = torch.empty(3, dtype=torch.int64)
        assert [(whole * factor).dtype for factor in (2, 2.0, True)] == [torch.int64, torch.float32, torch.int64]
