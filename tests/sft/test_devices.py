"""What a machine's GPUs decide: one device a process, and whose kernels. The facts are injected, no GPU is needed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.training_args import ParallelMode
from trl import SFTConfig as TrainerArguments

from sft.config import SFTConfig
from sft.training.arguments import build_arguments, can_use_liger
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


@pytest.mark.parametrize(
    ("layout", "has_gpu", "is_installed", "wanted"),
    [
        ("trl", True, True, True),
        ("trl", True, False, False),
        ("trl", False, True, False),  # a model on a CPU that only TRL's own way computes right
        ("documents", True, True, False),
    ],
)
def test_ligers_kernels_are_used_on_cuda_where_installed(
    monkeypatch: pytest.MonkeyPatch, layout: Layout, has_gpu: bool, is_installed: bool, wanted: bool
) -> None:
    monkeypatch.setattr("sft.training.arguments.torch.cuda.is_available", lambda: has_gpu)
    monkeypatch.setattr("sft.training.arguments.is_liger_kernel_available", lambda: is_installed)
    assert can_use_liger(layout) is wanted


@pytest.mark.parametrize("is_wanted", [True, False])
def test_the_trainer_is_told_of_ligers_kernels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_wanted: bool
) -> None:
    monkeypatch.setattr("sft.training.arguments.can_use_liger", lambda layout: is_wanted)
    config = SFTConfig(base_model="tiny", dataset_name="x", dataset_format="alpaca")
    assert build_arguments(config, "trl", torch.float32, tmp_path, False, False).use_liger_kernel is is_wanted
