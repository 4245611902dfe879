"""What a machine lacks is said in a sentence, whatever machine this is: the facts are injected."""

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from sft.errors import InvalidConfig
from sft.models.hardware import Hardware, check_hardware

ONE, FOUR, NONE = Hardware(1, 8, has_bitsandbytes=True), Hardware(4, 8, has_bitsandbytes=True), Hardware(0, 2, False)


@pytest.mark.parametrize(
    ("fields", "hardware", "told"),
    [
        ({"device_map": "auto"}, FOUR, "'auto' would spread the model over the 4 GPUs of this worker"),
        ({"device_map": "balanced"}, FOUR, "'balanced' would spread"),
        ({"device_map": "cpu"}, ONE, "'cpu' is not a GPU of this machine"),
        ({"device_map": "disk"}, FOUR, "'disk' is not a GPU"),
        ({"device_map": "meta"}, ONE, "'meta' is not a GPU"),
        ({"device_map": "cuda:4"}, FOUR, "'cuda:4' is not there: this worker has 4 GPU"),
        ({"device_map": "1"}, ONE, "'1' is not there"),
        ({"device_map": "cuda:0", "num_devices": 2}, FOUR, "does not go with num_devices 2"),
        ({"num_devices": 5}, FOUR, "num_devices is 5, but this job's worker has 4 GPUs"),
        ({"num_devices": 3}, NONE, "there is no GPU and the CPU has 2 cores"),
        ({"use_qlora": True}, NONE, "use_qlora needs a CUDA device"),
        ({"use_qlora": True}, Hardware(1, 8, has_bitsandbytes=False), "use_qlora needs the package bitsandbytes"),
    ],
)
def test_what_the_machine_lacks_is_refused(make_config, fields, hardware, told):
    with pytest.raises(InvalidConfig, match=told):
        check_hardware(make_config(**fields), hardware)


@pytest.mark.parametrize("place", [None, "auto", "cuda", "cuda:0", "0"])
def test_the_jobs_own_gpu_may_be_named(make_config, place):
    assert check_hardware(make_config(device_map=place), ONE) == []


def test_a_placement_without_a_gpu_is_told_to_have_no_effect(open_session):
    session = open_session(device_map="auto")
    assert (
        any("device_map 'auto' has no effect" in warning for warning in session.warnings) != torch.cuda.is_available()
    )


def test_adapters_of_a_quantized_model_stay_in_fp32_from_opening_to_resuming(open_session, monkeypatch):
    """TRL casts them to bf16, which fp16's gradient scaling can't take, and which a resumed run has not."""
    monkeypatch.setattr("trl.trainer.sft_trainer.SFTTrainer.__init__", cast_as_trl_does)
    for output in ("first", "first"):  # the second one goes on from the first one's checkpoint
        session = open_session(output, max_steps=3, save_steps=2)
        kinds = {weight.dtype for weight in session.trainer.model.parameters() if weight.requires_grad}
        assert kinds == {torch.float32}
        session.train()
        assert {weight.dtype for weight in session.trainer.model.parameters() if weight.requires_grad} == kinds


def test_an_adapter_to_start_from_is_not_rounded(open_session, tmp_path, monkeypatch):
    first = open_session("first", max_steps=3)
    first.train()
    saved = load_file(first.save(tmp_path / "adapter") / "adapter_model.safetensors")
    monkeypatch.setattr("trl.trainer.sft_trainer.SFTTrainer.__init__", cast_as_trl_does)
    opened = open_session("second", adapter_path=str(tmp_path / "adapter"))
    found = get_peft_model_state_dict(opened.trainer.model)
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], weight) for name, weight in saved.items())


def cast_as_trl_does(self, *arguments, **options):
    MAKE(self, *arguments, **options)
    for name, weight in self.model.named_parameters():
        if weight.requires_grad and "lora_" in name:
            weight.data = weight.data.to(torch.bfloat16)


MAKE = __import__("trl").SFTTrainer.__init__
