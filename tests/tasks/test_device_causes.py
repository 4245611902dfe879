"""A GPU that is busy or fails, and processes that lose each other, are told as that: no value is blamed for them."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from sft.adapting.adaptation import plan_adaptation
from sft.config import SFTConfig
from sft.models.loading import load_model, quiet_transformers
from sft.training.layout import check_causality, choose_layout
from sft.training.optimizers import check_optimizer
from tasks.causes import explain
from tests.tasks.test_causes import chained, raised_by
from tests.tiny_models import save_tiny_llama

INTERNAL = "internal_error"
BUSY = """CUDA error: CUDA-capable device(s) is/are busy or unavailable
Search for `cudaErrorDevicesUnavailable' in the CUDA documentation for more information.
Device-side assertions were explicitly omitted for this error check."""
NCCL = """NCCL error in: /pytorch/torch/csrc/c10d/NCCLUtils.cpp:93, {kind} (run with NCCL_DEBUG=INFO for details)
{more}"""
LOST_PEER = NCCL.format(
    kind="unhandled system error",
    more="ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.\n"
    "Last error:\nsocketProgress: Connection closed by remote peer",
)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.AcceleratorError(BUSY), ("is/are busy or unavailable", "`nvidia-smi`", "another program")),
        (RuntimeError(BUSY), ("is/are busy or unavailable",)),
        (RuntimeError("No CUDA GPUs are available"), ("`nvidia-smi`",)),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), ("ECC error",)),
        (torch.AcceleratorError("CUDA error: system not yet initialized"), ("not yet initialized",)),
        (torch.distributed.DistBackendError(LOST_PEER), ("Connection closed by remote peer", "NCCL_DEBUG=INFO")),
        (
            torch.distributed.DistNetworkError("The client socket has timed out after 600s"),
            ("num_devices", "timed out"),
        ),
        (torch.distributed.DistStoreError("Timed out after 601 seconds waiting for clients"), ("waiting for clients",)),
        (chained(torch.AcceleratorError(BUSY), ValueError("while the model was moved")), ("busy",)),
    ],
)
def test_a_device_that_fails_is_told_and_tried_again(error, words):
    cause = explain(error)
    assert (cause.code, cause.is_worth_retrying) == ("device_unavailable", True)
    assert all(word in cause.message for word in words)
    assert "\n" not in cause.message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            torch.distributed.DistBackendError(NCCL.format(kind="invalid usage", more="Duplicate GPU detected")),
            INTERNAL,
        ),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), INTERNAL),
        (torch.AcceleratorError("CUDA error: device-side assert triggered"), INTERNAL),
        (
            torch.distributed.DistBackendError(
                NCCL.format(kind="unhandled cuda error", more="Last error:\nCuda failure 2 'out of memory'")
            ),
            "out_of_memory",
        ),
    ],
)
def test_what_another_attempt_would_meet_again_is_final(error, code):
    cause = explain(error)
    assert (cause.code, cause.is_worth_retrying) == (code, False)


LOSE_A_PEER = """
import os, sys, torch
from torch import distributed
from tasks.causes import explain
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=int(sys.argv[1]), world_size=2)
distributed.all_reduce(torch.ones(1))
if sys.argv[1] == "1":
    os._exit(9)
try:
    distributed.all_reduce(torch.ones(1))
except Exception as error:
    print(*explain(error)[::2])
os._exit(0)
"""


def test_a_process_that_loses_the_other_is_tried_again(tmp_path):
    commands = [[sys.executable, "-c", LOSE_A_PEER, rank, str(tmp_path / "store")] for rank in "01"]
    first, second = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands)
    assert first.communicate()[0].split() == ["device_unavailable", "True"]
    assert second.wait() == 9
    second.stdout.close()


class Failing:
    """Something of a library that fails as it is called."""

    def __init__(self, error):
        self.error = error

    def __call__(self, *_, **__):
        raise self.error


BLAMED = {  # what would be blamed: the place that fails, and what is done there
    "an optimizer": ("torch.optim.SGD.step", lambda model, settings: check_optimizer(settings(optimizer_type="sgd"))),
    "files of a model": ("sft.models.loading.find_model_class",
                         lambda model, settings: load_model(model, settings(), torch.float32)),
    "a model": ("sft.training.layout.compute_logits", lambda model, settings: check_causality(open_model(model))),
    "a layout": ("sft.training.layout._sum_loss", lambda model, settings: choose_layout(open_model(model))),
    "a layer": ("sft.adapting.reach._pass_through",
                lambda model, settings: plan_adaptation(open_model(model), settings())),
    "an adapter": ("sft.adapting.injection.inject_adapter_in_model",
                   lambda model, settings: plan_adaptation(open_model(model), settings())),
}  # fmt: skip


def open_model(path):
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.AcceleratorError(BUSY), "device_unavailable"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
    ],
    ids=["busy", "memory"],
)
@pytest.mark.parametrize("what", BLAMED)
def test_nothing_else_is_blamed_for_a_device_that_fails(monkeypatch, tiny, what, error, code):
    def settings(**fields):
        return SFTConfig(base_model="tiny", dataset_name="x", dataset_format="alpaca", mixed_precision="none", **fields)

    place, act = BLAMED[what]
    monkeypatch.setattr(place, Failing(error))
    assert explain(raised_by(lambda: act(tiny, settings))).code == code
