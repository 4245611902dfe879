"""A process trains on one device, however many GPUs it sees; the number is injected, no GPU is needed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.training_args import ParallelMode
from trl import SFTConfig as TrainerArguments

from sft.arguments import build_arguments
from sft.session import TrainingSession


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers counts where CUDA shows four GPUs and no launcher has given the process one of them."""

    def build(*arguments: Any) -> TrainerArguments:
        built = build_arguments(*arguments)
        built._n_gpu = 4
        return built

    monkeypatch.setattr("sft.session.build_arguments", build)


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
    monkeypatch.setattr("sft.arguments.OneDeviceArguments.n_gpu", TrainerArguments.n_gpu)
    with pytest.raises(ValueError, match="does not support `nn"):
        open_session(max_steps=2)
