"""What the kinds of adapter do, and that what is saved is what was trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sft.config import SFTConfig
from sft.data.tokenization import PreparedData
from sft.errors import InvalidConfig
from sft.models.loading import quiet_transformers
from sft.models.model_class import build_empty
from sft.planning.shape import measure_shape
from sft.training.session import TrainingSession
from tests.tiny_models import measure_loss, save_tiny_model

Open = Callable[..., TrainingSession]


def read_saved(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return settings, load_file(folder / "adapter_model.safetensors")


def read_scales(model: torch.nn.Module) -> set[float]:
    return {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}


def test_dora_trains_and_saves_its_magnitudes(open_session: Open, tmp_path: Path, rows: PreparedData) -> None:
    session = open_session(use_dora=True, save_merged_model=True, num_epochs=2.0)
    before = {
        name: value.detach().clone() for name, value in session.trainer.model.named_parameters() if "magnitude" in name
    }
    assert len(before) == 2 * 7  # every linear layer of two blocks
    session.train()
    after = dict(session.trainer.model.named_parameters())
    assert all((after[name] != value).any() for name, value in before.items())

    expected = session.evaluate()["eval_loss"]
    settings, weights = read_saved(session.save(tmp_path / "adapter"))
    assert settings["use_dora"] is True
    assert sum("lora_magnitude_vector" in name for name in weights) == len(before)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert measure_loss(merged, rows.load_eval()) == pytest.approx(expected, rel=1e-4)


def test_rslora_scales_by_the_root_of_the_rank(open_session: Open, model_path: Path, tmp_path: Path) -> None:
    session = open_session(use_rslora=True, lora_r=16, lora_alpha=8)
    assert read_scales(session.trainer.model) == {8 / 4}
    folder = session.save(tmp_path / "adapter")
    assert read_saved(folder)[0]["use_rslora"] is True
    with quiet_transformers():
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_path), folder)
    assert read_scales(loaded) == {8 / 4}


@pytest.mark.parametrize("optimizer_type", [None, "sgd"])
def test_loraplus_gives_b_a_higher_rate(open_session: Open, optimizer_type: str | None) -> None:
    rates: list[float] = []
    session = open_session(
        loraplus_lr_ratio=8.0,
        scheduler_type="constant",
        warmup_ratio=0.0,
        optimizer_type=optimizer_type,
        on_event=lambda name, values: rates.append(values["learning_rate"]) if name == "step" else None,
    )
    session.train()
    names = {parameter: name for name, parameter in session.trainer.model.named_parameters()}
    found = {
        ("B" if "lora_B" in names[parameter] else "A", group["lr"], group["weight_decay"])
        for group in session.trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    assert found == {("A", 1e-2, 0.001), ("B", 8e-2, 0.001)}
    trained = sum(len(group["params"]) for group in session.trainer.optimizer.param_groups)
    assert trained == sum(parameter.requires_grad for parameter in names)
    assert set(rates) == {1e-2}


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], "q_proj,v_proj"])
def test_only_the_named_layers_are_adapted(open_session: Open, targets: Any) -> None:
    session = open_session(lora_target_modules=targets)
    adapted = {name.split(".")[-4] for name, weight in session.trainer.model.named_parameters() if weight.requires_grad}
    assert adapted == {"q_proj", "v_proj"}


def test_gpt2s_transposed_layers_can_be_named(open_session: Open, tmp_path: Path) -> None:
    session = open_session(model=save_tiny_model("gpt2", tmp_path / "gpt2"), lora_target_modules=["c_attn"])
    adapted = {name.split(".")[-4] for name, weight in session.trainer.model.named_parameters() if weight.requires_grad}
    assert adapted == {"c_attn"}
    assert read_saved(session.save(tmp_path / "adapter"))[0]["fan_in_fan_out"] is True


def test_an_adapter_to_start_from_keeps_its_kind(open_session: Open, tmp_path: Path) -> None:
    plain = open_session().save(tmp_path / "plain")
    dora = open_session(use_dora=True).save(tmp_path / "dora")
    with pytest.raises(InvalidConfig, match="use_dora is true, but the adapter in adapter_path was made without DoRA"):
        open_session(adapter_path=str(plain), use_dora=True)
    with pytest.raises(InvalidConfig, match="use_rslora is true, but the adapter in adapter_path was made without"):
        open_session(adapter_path=str(plain), use_rslora=True)
    resumed = open_session("resumed", adapter_path=str(dora))
    resumed.train()
    assert read_saved(resumed.save(tmp_path / "again"))[0]["use_dora"] is True


def test_loraplus_takes_no_optimizer_it_can_not_split(open_session: Open) -> None:
    with pytest.raises(InvalidConfig, match="loraplus_lr_ratio does not work with optimizer_type 'galore_adamw'"):
        open_session(loraplus_lr_ratio=4.0, optimizer_type="galore_adamw")


def save_adapter(model_path: Path, folder: Path, **settings: Any) -> Path:
    """An adapter of PEFT's own making, with some effect."""
    torch.manual_seed(1)
    kind = {"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False} | settings
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(model_path)
        get_peft_model(model, LoraConfig(**kind)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"modules_to_save": ["lm_head", "embed_tokens"]},
        {"modules_to_save": ["norm"]},
        {"trainable_token_indices": [3, 4]},
        {"trainable_token_indices": {"embed_tokens": [3, 4, 5]}},
        {"use_dora": True, "rank_pattern": {"q_proj": 3}},
        {"lora_bias": True},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_plan_counts_what_an_adapter_to_start_from_trains(
    open_session: Open, make_config: Callable[..., SFTConfig], model_path: Path, tmp_path: Path, settings: Any
) -> None:
    start = save_adapter(model_path, tmp_path / "start", **settings)
    planned = measure_shape(build_empty(model_path), make_config(adapter_path=str(start)), model_path)
    trained = open_session(adapter_path=str(start)).adaptation["trainable_parameters"]
    assert planned.trainable == trained > 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"alora_invocation_tokens": [1]}, "acts only behind the tokens of its alora_invocation_tokens"),
        ({"lora_alpha": 0}, "has lora_alpha 0 and never acts"),
        ({"lora_bias": True}, r"has biases \(lora_bias\) for layers without any; set save_merged_model to false"),
        ({"layer_replication": [[0, 2], [1, 2]]}, r"repeats layers \(layer_replication\)"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_an_adapter_that_can_not_end_well_is_refused_at_once(
    open_session: Open,
    make_config: Callable[..., SFTConfig],
    model_path: Path,
    tmp_path: Path,
    settings: Any,
    told: str,
) -> None:
    start = save_adapter(model_path, tmp_path / "start", **settings)
    wanted = {"adapter_path": str(start), "save_merged_model": True}
    with pytest.raises(InvalidConfig, match=told):
        measure_shape(build_empty(model_path), make_config(**wanted), model_path)
    with pytest.raises(InvalidConfig, match=told):
        open_session(**wanted)


def test_settings_that_an_adapter_to_start_from_overrules_are_named(
    open_session: Open, model_path: Path, tmp_path: Path
) -> None:
    start = save_adapter(model_path, tmp_path / "start")
    session = open_session(adapter_path=str(start), lora_r=16, lora_dropout=0.0, lora_target_modules=["down_proj"])
    assert session.warnings == [
        "lora_r 16 is ignored: the adapter in adapter_path keeps its own, 2",
        "lora_target_modules is ignored: the adapter in adapter_path keeps the layers it has",
    ]
