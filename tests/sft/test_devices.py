"""What a machine's GPUs decide: one device a process, and whose kernels. The facts are injected, no GPU is needed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM
from transformers.training_args import ParallelMode
from trl import SFTConfig as TrainerArguments

from sft.adapting.adapters import add_adapter
from sft.config import SFTConfig
from sft.models.loading import quiet_transformers
from sft.training.arguments import build_arguments, trains_every_weight
from sft.training.layout import Layout
from sft.training.session import TrainingSession


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers counts where CUDA shows four GPUs and no launcher has given the process one of them."""

    def build(*arguments: Any) -> TrainerArguments:
        built = build_arguments(*arguments)
        built._n_gpu = 4
        return built

    monkeypatch.setattr("sft.training.session.build_arguments", build)


@pytest.mark.usefixtures("four_gpus")
def test_a_process_that_sees_four_gpus_trains_on_one(open_session: Callable[..., TrainingSession]) -> None:
    session = open_session(max_steps=2)
    arguments = session.trainer.args
    assert TrainerArguments.n_gpu.fget(arguments) == 4
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 2)
    assert arguments.parallel_mode == ParallelMode.NOT_PARALLEL
    assert session.train()["steps"] == 2
    assert not isinstance(session.trainer.model_wrapped, torch.nn.DataParallel)


@pytest.mark.usefixtures("four_gpus")
def test_trl_would_refuse_the_four(
    open_session: Callable[..., TrainingSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sft.training.arguments.OneDeviceArguments.n_gpu", TrainerArguments.n_gpu)
    with pytest.raises(ValueError, match="does not support `nn"):
        open_session(max_steps=2)


@pytest.mark.parametrize("is_wanted", [True, False])
def test_the_trainer_is_told_of_ligers_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_wanted: bool
) -> None:
    monkeypatch.setattr("sft.training.arguments.can_use_liger", lambda layout, kind: is_wanted)
    config = SFTConfig(base_model="tiny", dataset_name="x", dataset_format="alpaca")
    assert build_arguments(config, "trl", torch.float32, tmp_path, False, False).use_liger_kernel is is_wanted


def save_mixtral(folder: Path, model_path: Path) -> Path:
    """A model of two layers that routes each token to one of four experts, each with linear layers of its own."""
    shutil.copytree(model_path, folder)
    own = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
    sizes = {name: own[name] for name in ("vocab_size", "eos_token_id", "pad_token_id", "max_position_embeddings")}
    settings = MixtralConfig(
        **sizes, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=1,
    )  # fmt: skip
    MixtralForCausalLM(settings).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "fields", "searches"),
    [("dense", {}, False), ("dense", {"use_dora": True}, False), ("experts", {}, True)],
)
def test_ddp_searches_for_weights_without_a_gradient_only_where_there_can_be_some(
    open_session: Callable[..., TrainingSession],
    model_path: Path,
    tmp_path: Path,
    kind: str,
    fields: dict[str, Any],
    searches: bool,
) -> None:
    """It would go through the whole graph at each step of each model with an adapter."""
    model = model_path if kind == "dense" else save_mixtral(tmp_path / "mixtral", model_path)
    session = open_session(model=model, max_steps=1, **fields)
    assert session.trainer.accelerator.ddp_handler.find_unused_parameters is searches
    start = session.save(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(model)
    again = SFTConfig.from_dict(session.config.model_dump() | {"adapter_path": str(start), "num_devices": 2} | fields)
    with quiet_transformers():
        assert trains_every_weight(base, add_adapter(base, again)[1]) is not searches


@pytest.mark.parametrize(
    ("settings", "searches"),
    [
        ({"target_modules": ["q_proj"]}, False),
        ({"target_modules": ["q_proj", "unreached"]}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["norm"]}, True),
    ],
    ids=str,
)
def test_ddp_searches_where_an_adapter_has_weights_that_rows_may_not_reach(
    model_path: Path, tmp_path: Path, settings: dict[str, Any], searches: bool
) -> None:
    def load() -> Any:
        model = AutoModelForCausalLM.from_pretrained(model_path)
        model.model.layers[0].unreached = torch.nn.Linear(4, 4)
        return model

    with quiet_transformers():
        get_peft_model(load(), LoraConfig(task_type="CAUSAL_LM", **settings)).save_pretrained(tmp_path / "start")
    config = SFTConfig(
        base_model="m", dataset_name="x", dataset_format="alpaca", adapter_path=str(tmp_path / "start"), num_devices=2
    )
    base = load()
    with quiet_transformers():
        assert trains_every_weight(base, add_adapter(base, config)[1]) is not searches


def test_a_dense_models_batches_reach_every_trained_weight(open_session: Callable[..., TrainingSession]) -> None:
    session = open_session(batch_size=1)
    trainer = session.trainer
    trainer.current_gradient_accumulation_steps = 1
    trainer.training_step(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert all(weight.grad is not None for weight in trainer.model.parameters() if weight.requires_grad)


@pytest.mark.parametrize(
    ("precision", "has_it", "wanted"), [("none", True, "tf32"), ("bf16", True, "none"), ("none", False, "none")]
)
def test_fp32_is_multiplied_in_tf32_on_cuda_where_the_gpu_has_it(
    open_session: Callable[..., TrainingSession],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    has_it: bool,
    wanted: str,
) -> None:
    monkeypatch.setattr("sft.training.precision.is_torch_tf32_available", lambda: has_it)
    found: dict[str, tuple[str, str]] = {}

    def note(name: str, values: dict[str, Any]) -> None:
        found[name] = torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision

    session = open_session(on_event=note, mixed_precision=precision, max_steps=1)
    note("trials", {})  # layouts are compared exactly
    session.train()
    session.evaluate()
    assert [found[name] for name in ("trials", "step", "evaluate", "end")] == [
        ("none", "none"), (wanted, "none"), (wanted, "none"), ("none", "none"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "fields", "rows", "sampling"),
    [
        ("documents", {}, (4, 4), "random"),
        ("padded", {}, (4, 4), "group_by_length"),
        ("trl", {}, (4, 4), "group_by_length"),
        ("documents", {"packing": True}, (4, 4), "random"),
        ("padded", {"packing": True}, (1, 16), "random"),
    ],
)
def test_on_a_gpu_rows_that_are_padded_are_grouped_and_packed_ones_come_alone(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    layout: Layout,
    fields: dict[str, Any],
    rows: tuple[int, int],
    sampling: str,
) -> None:
    monkeypatch.setattr("sft.training.arguments.torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("sft.training.arguments.OneDeviceArguments", SimpleNamespace)  # which would look for the GPU
    config = SFTConfig(base_model="tiny", dataset_name="x", dataset_format="alpaca", **fields)
    made = build_arguments(config, layout, torch.float32, tmp_path, False, False)
    assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == rows
    assert made.train_sampling_strategy == sampling
    assert made.dataloader_pin_memory
    assert made.accelerator_config == {"non_blocking": True}  # a batch is copied while the step before it runs
