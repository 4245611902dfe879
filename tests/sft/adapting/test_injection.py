"""What PEFT loads back of the adapter that it saves: nothing else is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from sft.adapting.adaptation import LOST, plan_adaptation
from sft.adapting.adapters import add_adapter, plan_adapter
from sft.adapting.injection import try_settings
from sft.config import SFTConfig
from sft.errors import InvalidConfig, ModelNotSupported
from sft.models.loading import quiet_transformers
from tests.sweep.tiny import build_model

IDS: dict[str, int | None] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


@pytest.fixture(scope="module")
def model_of() -> Callable[[str], PreTrainedModel]:
    made: dict[str, PreTrainedModel] = {}

    def find(kind: str) -> PreTrainedModel:
        if kind not in made:
            with quiet_transformers():
                made[kind] = build_model(kind, 128, IDS)
        return made[kind]

    return find


def make_empty(model: PreTrainedModel) -> PreTrainedModel:
    with torch.device("meta"):
        return type(model)(model.config)


def compute_logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(input_ids=torch.arange(3, 40)[None], use_cache=False).logits
    return logits


def save_adapter(model: PreTrainedModel, settings: LoraConfig, folder: Path) -> torch.Tensor:
    """An adapter with an effect on every layer; returns the logits with it, and leaves the model without."""
    with quiet_transformers():
        adapted = get_peft_model(model, settings)
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
        logits = compute_logits(adapted)
        adapted.save_pretrained(folder, save_embedding_layers=False)
        adapted.unload()
    return logits


@pytest.mark.parametrize("kind", ["mistral_large4", "qwen2_moe", "llava"])
def test_what_is_adapted_comes_back(
    model_of: Callable[[str], PreTrainedModel], make_config: Callable[..., SFTConfig], tmp_path: Path, kind: str
) -> None:
    model = model_of(kind)
    adaptation = plan_adaptation(model, make_config())
    assert plan_adaptation(make_empty(model), make_config()) == adaptation
    assert any(part.reason == LOST for part in adaptation.left_out) == (kind == "mistral_large4")
    assert adaptation.settings is not None
    wanted = save_adapter(model, adaptation.settings, tmp_path)
    with quiet_transformers():
        found = compute_logits(loaded := PeftModel.from_pretrained(model, str(tmp_path)))
        loaded.unload()
    assert torch.allclose(found, wanted, atol=1e-5)


def test_a_model_that_nothing_comes_back_of_is_refused(
    model_of: Callable[[str], PreTrainedModel], make_config: Callable[..., SFTConfig]
) -> None:
    model = model_of("unlimited_ocr")
    for tried in (model, make_empty(model)):
        with pytest.raises(ModelNotSupported, match="PEFT does not load their weights back"):
            plan_adaptation(tried, make_config())


def test_layers_that_do_not_come_back_are_refused_by_name(
    model_of: Callable[[str], PreTrainedModel], make_config: Callable[..., SFTConfig]
) -> None:
    targets = ["q_proj", "shared_experts.up_proj"]
    with pytest.raises(InvalidConfig, match=r"'shared_experts.up_proj' can't be adapted in this model \(PEFT does not"):
        plan_adaptation(model_of("mistral_large4"), make_config(lora_target_modules=targets))


def test_an_adapter_that_does_not_come_back_is_nothing_to_start_from(
    model_of: Callable[[str], PreTrainedModel], make_config: Callable[..., SFTConfig], tmp_path: Path
) -> None:
    model, settings = model_of("unlimited_ocr"), LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["o_proj"])
    save_adapter(model, settings, tmp_path)
    config = make_config(adapter_path=str(tmp_path))
    with pytest.raises(InvalidConfig, match="PEFT loads nothing into 4 of its layers"):
        plan_adapter(make_empty(model), config)
    with quiet_transformers(), pytest.raises(InvalidConfig, match="PEFT loads nothing into 4 of its layers"):
        add_adapter(model, config)


def test_a_trial_leaves_nothing_behind(model_of: Callable[[str], PreTrainedModel]) -> None:
    model = model_of("qwen2_moe")
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    found, error = try_settings(model, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    assert error is None
    assert found is not None
    assert not found.lost
    assert len(found.modules) == 4
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before
    assert not hasattr(model, "peft_config")
