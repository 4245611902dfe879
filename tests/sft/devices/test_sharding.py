"""`shard_model`: the layers of a model split over two processes on a CPU, and the same training as in one process."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from sft.config import SFTConfig
from sft.data.tokenization import prepare
from sft.devices.launcher import DistributedSession, open_session
from sft.errors import InvalidConfig, StackError
from sft.models.loading import quiet_transformers
from sft.training.session import TrainingSession
from tests.tiny_models import build_tokenizer

Run = Callable[..., dict[str, Any]]
SHARDED = {"num_devices": 2, "shard_model": True}


@pytest.fixture
def run(model_path: Path, alpaca_file: Path, tmp_path: Path, make_config: Callable[..., SFTConfig]) -> Run:
    """Train, evaluate before and after, and save; `kill_at` kills a process with SIGKILL after that step.

    `told` gets what was seen, also of a run that dies.
    """

    def run_it(
        output: str, kill_at: int | None = None, told: dict[str, Any] | None = None, **fields: Any
    ) -> dict[str, Any]:
        config = make_config(**({"validation_split": 0.4, "num_epochs": 3.0, "save_steps": 2} | fields))
        rows = prepare(config, model_path, alpaca_file, tmp_path / "cache")
        told = new_account() if told is None else told

        def on_event(name: str, values: dict[str, Any]) -> None:
            if name == "begin":
                told["layout"] = values["layout"]
                told["adapted"] = values["adapted"]
            if name == "step":
                told["steps"].append(values["step"])
                told["losses"].append(values["loss"])
                told["norms"].append(values["grad_norm"])
                if values["step"] == kill_at:
                    kill_one()

        session = open_session(config, rows, model_path, tmp_path / output, on_event)
        told["eval"] = [session.evaluate()["eval_loss"]]
        told["result"] = session.train()
        told["eval"].append(session.evaluate()["eval_loss"])
        session.save(tmp_path / output / "adapter")
        told["warnings"] = session.warnings
        if isinstance(session, DistributedSession):
            session.close()
        told["adapter"] = load_file(tmp_path / output / "adapter" / "adapter_model.safetensors")
        return told

    return run_it


def new_account() -> dict[str, Any]:
    """What a run tells of its steps, before it began."""
    return {"steps": [], "losses": [], "norms": []}


def kill_one() -> None:
    """Kill the last of the processes that train."""
    members = [
        child
        for child in psutil.Process().children(recursive=True)
        if "sft.devices.ddp_worker" in " ".join(child.cmdline()) and child.environ().get("RANK") == "1"
    ]
    os.kill(members[-1].pid, signal.SIGKILL)


def list_files(folder: Path) -> set[str]:
    """All files of a run, without the random states, of which each process has one."""
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if "rng_state" not in name}


def test_a_split_model_takes_the_steps_of_one_process_also_when_killed_and_resumed(run: Run, tmp_path: Path) -> None:
    one, killed = run("one", gradient_accumulation_steps=2), new_account()
    with pytest.raises((StackError, RuntimeError), match=r"process [01] of the 2 that train has died|gloo"):
        run("two", kill_at=3, told=killed, **SHARDED)
    assert killed["losses"][:3] == pytest.approx(one["losses"][:3], rel=1e-5)
    assert killed["norms"][:3] == pytest.approx(one["norms"][:3], rel=1e-4)
    assert killed["eval"] == pytest.approx(one["eval"][:1], rel=1e-5)  # five rows in three batches: one process has two
    assert (tmp_path / "two" / "checkpoints" / "checkpoint-2" / "complete.json").is_file()

    two = run("two", gradient_checkpointing=True, **SHARDED)
    assert one["layout"] == killed["layout"] == two["layout"] == "documents"
    assert one["adapted"] == two["adapted"]
    assert one["warnings"] == two["warnings"] == []
    assert len(one["losses"]) == 6
    first = two["steps"][0]
    assert first in (3, 5)  # the process may have saved once more before it was dead
    assert two["losses"] == pytest.approx(one["losses"][first - 1 :], rel=1e-5)
    assert two["norms"] == pytest.approx(one["norms"][first - 1 :], rel=1e-4)
    assert two["eval"] == pytest.approx(one["eval"], rel=1e-5)
    assert two["adapter"].keys() == one["adapter"].keys()
    for name, weight in one["adapter"].items():
        torch.testing.assert_close(two["adapter"][name], weight, rtol=0, atol=1e-5)  # they have moved by 0.05
    assert list_files(tmp_path / "two") == list_files(tmp_path / "one")
    settings = [
        json.loads((tmp_path / name / "adapter" / "adapter_config.json").read_text()) for name in ("one", "two")
    ]
    for found in settings:
        found["target_modules"].sort()
    assert settings[0] == settings[1]


@pytest.fixture
def refuse(
    tmp_path: Path, alpaca_file: Path, make_config: Callable[..., SFTConfig]
) -> Callable[..., pytest.ExceptionInfo[InvalidConfig]]:
    """The error with which a session of a model is refused, before a process is started."""

    def refuse_it(model: Path, **fields: Any) -> pytest.ExceptionInfo[InvalidConfig]:
        config = make_config(**SHARDED, **fields)
        rows = prepare(config, model, alpaca_file, tmp_path / "cache")
        with pytest.raises(InvalidConfig) as caught:
            open_session(config, rows, model, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return caught

    return refuse_it


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_adapter_to_start_from_that_needs_whole_weights_is_refused(
    refuse: Any, model_path: Path, tmp_path: Path, settings: dict[str, Any], what: str
) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_path)
    with quiet_transformers():
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], **settings))
        adapted.save_pretrained(tmp_path / "start", save_embedding_layers=False)
    caught = refuse(model_path, adapter_path=str(tmp_path / "start"))
    assert f"shard_model does not go with an adapter whose {what}, which needs whole weights" in str(caught.value)
    assert "start a new adapter, or set shard_model to false" in str(caught.value)


def test_an_adapter_on_stacked_experts_is_refused(refuse: Any, tmp_path: Path) -> None:
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path / "moe")
    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_local_experts": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None}
    settings = MixtralConfig(vocab_size=len(tokenizer), eos_token_id=0, pad_token_id=0, **sizes, **heads)
    MixtralForCausalLM(settings).save_pretrained(tmp_path / "moe")
    caught = refuse(tmp_path / "moe", lora_target_modules=["experts.down_proj"], lora_dropout=0.0)
    assert "an adapter whose target_parameters is ['experts.down_proj']" in str(caught.value)
    assert "name other layers in lora_target_modules" in str(caught.value)


def test_what_does_not_go_with_a_split_model_is_refused_by_name(make_config: Callable[..., SFTConfig]) -> None:
    for fields, message in (
        ({"num_devices": 1}, "num_devices is 1; set num_devices to 2 or more, or shard_model to false"),
        ({"use_qlora": True}, "shard_model does not split the 4-bit weights of use_qlora; set one of them to false"),
        ({"use_dora": True}, "shard_model splits the weights whose norms use_dora needs; set one of them to false"),
        ({"use_lora": False}, "use_lora is false; set use_lora to true, or shard_model to false"),
    ):
        with pytest.raises(InvalidConfig) as caught:
            make_config(**SHARDED | fields)
        assert message in str(caught.value)


def test_a_session_of_one_process_says_nothing_of_split_weights(open_session: Callable[..., TrainingSession]) -> None:
    session = open_session()
    assert not hasattr(session.trainer.model, "_ddp_params_and_buffers_to_ignore")
