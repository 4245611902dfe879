"""Each name of an optimizer trains here, or is refused before a model is loaded."""

import pytest
import torch
from safetensors.torch import load_file
from transformers.training_args import OptimizerNames

from sft.errors import InvalidConfig
from sft.training.optimizers import check_optimizer

ALWAYS_THERE = {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"}


def refusal_of(config):
    """What it is refused with, None when it works."""
    try:
        check_optimizer(config)
    except InvalidConfig as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames])
def test_each_optimizer_steps_or_is_refused_with_its_need(make_config, name):
    told = refusal_of(make_config(optimizer_type=name))
    assert (told is None) >= (name in ALWAYS_THERE)
    if told is not None:
        assert told.startswith(f"optimizer_type {name!r} does not work on this machine: ")
        assert told.endswith("or name another one, such as adamw_torch")
        assert "\n" not in told


def test_a_package_that_is_missing_is_named(make_config, monkeypatch):
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(InvalidConfig, match=r"'adamw_8bit' does not work .*install `bitsandbytes`"):
        check_optimizer(make_config(optimizer_type="adamw_8bit"))


def test_one_that_fails_at_its_first_step_is_refused(make_config, monkeypatch):
    """As bitsandbytes' do on a CPU that its build has no code for."""
    monkeypatch.setattr("torch.optim.SGD.step", lambda self: 1 / 0)
    with pytest.raises(InvalidConfig, match="optimizer_type 'sgd' does not work on this machine: division by zero"):
        check_optimizer(make_config(optimizer_type="sgd"))


def test_it_is_refused_before_the_model_is_loaded(open_session, monkeypatch):
    monkeypatch.setattr("sft.training.session.load_model", lambda *arguments: pytest.fail("the model was loaded"))
    with pytest.raises(InvalidConfig, match="optimizer_type 'galore_adamw' does not work"):
        open_session(optimizer_type="galore_adamw")


class Averaging(torch.optim.SGD):
    """As a schedule-free optimizer: the weights to use are in the model in `eval` alone, here 1 above those trained."""

    def __init__(self, params):
        super().__init__(params, lr=0.01)
        self.is_training = True

    def train(self):
        self._move(True, -1.0)

    def eval(self):
        self._move(False, 1.0)

    def _move(self, is_training, by):
        if self.is_training != is_training:
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.data += by
        self.is_training = is_training


def test_weights_of_a_schedule_free_optimizer_are_evaluated_and_saved_as_they_are_to_be_used(open_session, tmp_path):
    session = open_session(max_steps=4, save_steps=2, eval_steps=2, save_total_limit=5)
    trained = [weight for weight in session.trainer.model.parameters() if weight.requires_grad]
    optimizer = session.trainer.optimizer = Averaging(trained)
    seen = []
    evaluate, step = session.trainer.evaluation_loop, optimizer.step

    def evaluation_loop(*args, **kwargs):
        output = evaluate(*args, **kwargs)
        seen.append(("evaluate", optimizer.is_training))
        return output

    def take_step(*args, **kwargs):
        seen.append(("step", optimizer.is_training))
        return step(*args, **kwargs)

    session.trainer.evaluation_loop, optimizer.step = evaluation_loop, take_step
    session.train()
    assert seen == [("step", True), ("step", True), ("evaluate", False)] * 2
    assert not optimizer.is_training
    for folder in (session.checkpoint_dir / "checkpoint-2", session.save(tmp_path / "adapter")):
        weights = load_file(folder / "adapter_model.safetensors")
        assert all(weight.mean() > 0.5 for name, weight in weights.items() if "lora_B" in name)
