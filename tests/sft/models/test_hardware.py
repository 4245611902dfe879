"""What a machine lacks is said in a sentence, whatever machine this is: the facts are injected."""

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import get_peft_model_state_dict
from safetensors.torch import load_file

from sft.errors import InvalidConfig
from sft.models.hardware import Hardware, check_hardware
from sft.models.loading import load_model
from sft.models.placement import choose_gpu
from sft.training.arguments import OneDeviceArguments

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
        ({"attn_implementation": "varlen"}, NONE, "attn_implementation varlen needs a CUDA device and there is none"),
        ({"attn_implementation": "flash_attention_2"}, NONE, "flash_attention_2 needs a CUDA device"),
        ({"attn_implementation": "flash_attention_2"}, ONE, "flash_attention_2 needs the package flash_attn, which"),
        (
            {"attn_implementation": "flash_attention_3"},
            ONE._replace(flash_attention=("flash_attention_2",)),
            "flash_attention_3 needs the package flash_attn_interface, which is not installed",
        ),
        (
            {"attn_implementation": "flash_attention_2", "mixed_precision": "none"},
            ONE._replace(flash_attention=("flash_attention_2",)),
            "computes in bf16 or fp16, and mixed_precision is none",
        ),
        ({"use_qlora": True}, Hardware(1, 8, has_bitsandbytes=False), "use_qlora needs the package bitsandbytes"),
    ],
)
def test_what_the_machine_lacks_is_refused(make_config, fields, hardware, told):
    with pytest.raises(InvalidConfig, match=told):
        check_hardware(make_config(**fields), hardware)


@pytest.mark.parametrize("place", [None, "auto", "cuda", "cuda:0", "0"])
def test_the_jobs_own_gpu_may_be_named(make_config, place):
    assert check_hardware(make_config(device_map=place), ONE) == []


@pytest.mark.parametrize(
    ("place", "rank", "number"),
    [(None, None, 0), (None, "3", 3), ("auto", None, 0), ("cuda", None, 0), ("cuda:0", None, 0), ("cuda:2", None, 2),
     ("2", None, 2)],
)  # fmt: skip
def test_the_model_is_loaded_on_one_gpu_as_a_whole(make_config, model_path, two_gpus, monkeypatch, place, rank, number):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr("sft.models.loading.find_model_class", lambda *_: Loading)
    assert choose_gpu(place) == number
    with pytest.raises(Loading) as loading:
        load_model(model_path, make_config(device_map=place), torch.float32)
    assert loading.value.args[0]["device_map"] == {"": number}


class Loading(BaseException):
    """A model class that tells how it is loaded."""

    @classmethod
    def from_pretrained(cls, *_, **options):
        raise cls(options)


def test_training_runs_on_the_gpu_that_was_chosen(two_gpus, tmp_path):
    """transformers sends all batches to the first GPU."""
    torch.cuda.set_device(1)
    arguments = OneDeviceArguments(str(tmp_path), activation_checkpointing=False, bf16=False, report_to="none")
    assert arguments.device == torch.device("cuda", 1)
    assert torch.cuda.current_device() == 1
    assert arguments.n_gpu == 1


@pytest.fixture
def two_gpus(monkeypatch):
    """Torch as on a machine with two GPUs, as far as choosing one goes."""
    current = [0]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.current_device", lambda: current[0])
    monkeypatch.setattr(
        "torch.cuda.set_device", lambda device: current.__setitem__(0, getattr(device, "index", device))
    )
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_attention_kernels_that_are_installed_may_be_asked_for(make_config):
    flash = ONE._replace(flash_attention=("flash_attention_2",))
    for name in ("auto", "varlen", "sdpa", "eager", "flash_attention_2"):
        assert check_hardware(make_config(attn_implementation=name, mixed_precision="auto"), flash) == []
    for name in ("auto", "sdpa", "eager"):
        assert check_hardware(make_config(attn_implementation=name), NONE) == []


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
