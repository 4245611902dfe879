"""The plan of a job with `shard_model` counts what each of its devices holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from sft.config import SFTConfig
from sft.data.tokenization import prepare
from sft.errors import InvalidConfig
from sft.planning.plan import make_plan
from tests.tiny_models import build_tokenizer

LAYERS = 16


@pytest.fixture
def plan_of(tmp_path: Path, alpaca_file: Path, make_config: Callable[..., SFTConfig]) -> Callable[..., dict[str, Any]]:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path / "deep")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
    ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    settings = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=LAYERS, **sizes, **ids)
    LlamaForCausalLM(settings).save_pretrained(tmp_path / "deep")

    def plan(**fields: Any) -> dict[str, Any]:
        config = make_config(**fields)
        rows = prepare(config, tmp_path / "deep", alpaca_file, tmp_path / "cache")
        return make_plan(config, rows, tmp_path / "deep", [], 10**12)

    return plan


def test_a_device_holds_its_share_of_the_layers_the_rest_and_three_layers(plan_of: Callable[..., Any]) -> None:
    whole, split = plan_of(num_devices=2), plan_of(num_devices=2, shard_model=True)
    # q, k, v, o (32, 32), gate, up, down (32, 64), two norms (32,), in fp32
    layer = 4 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32)
    saved = LAYERS * layer - (LAYERS // 2 + 3) * layer
    assert whole["memory"]["parts"]["weights"] - split["memory"]["parts"]["weights"] == saved
    assert whole["memory"]["peak_bytes"] - split["memory"]["peak_bytes"] == pytest.approx(saved, abs=2)
    assert {key: whole[key] for key in ("steps", "rows", "model")} == {
        key: split[key] for key in ("steps", "rows", "model")
    }


def test_a_plan_refuses_what_the_job_would(plan_of: Callable[..., Any], tmp_path: Path) -> None:
    text = (tmp_path / "deep" / "config.json").read_text(encoding="utf-8")
    changed = text.replace('"hidden_size"', '"layerdrop": 0.1, "hidden_size"')
    (tmp_path / "deep" / "config.json").write_text(changed, encoding="utf-8")
    with pytest.raises(InvalidConfig, match="shard_model can't split base_model tiny, whose config"):
        plan_of(num_devices=2, shard_model=True)
