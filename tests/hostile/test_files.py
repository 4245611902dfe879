"""Models, adapters, checkpoints, datasets and settings that would run code: none of it runs."""

import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cli.__main__ import main
from jobs.settings import Settings
from sft.checkpoints.folders import find_newest_checkpoint, seal_checkpoint
from sft.config import SFTConfig
from sft.errors import CheckpointUnusable, InvalidConfig, InvalidDataset, ModelNotFound, TemplateNotFound, TuneyardError
from sft.models.loading import load_model, load_tokenizer
from sft.models.model_class import build_empty
from sft.training.session import TrainingSession
from tasks.dataset import resolve
from tasks.dataset_store import combine_md5, hash_bytes, store_dataset
from tests.killed import kill_at_each_step
from tests.sft.conftest import *  # noqa: F403 - the fixtures of a tiny session

Open = Callable[..., TrainingSession]


class Touch:
    """Pickled, it makes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What must not be there afterwards."""
    return tmp_path / "canary"


@pytest.fixture
def model(model_path: Path, tmp_path: Path, canary: Path) -> Path:
    """A copy of the tiny model with modules beside it that leave the canary when they are imported."""
    folder = Path(shutil.copytree(model_path, tmp_path / "model"))
    code = f"""from pathlib import Path
Path({str(canary)!r}).touch()
from transformers import LlamaConfig as EvilConfig, LlamaForCausalLM as EvilModel
from transformers import PreTrainedTokenizerFast as EvilTokenizer
"""
    for name in ("modeling_evil", "configuration_evil", "tokenization_evil", "generate"):
        (folder / f"{name}.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(code)
    return folder


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


MODEL_MAP = {
    "AutoConfig": "configuration_evil.EvilConfig",
    "AutoModel": "modeling_evil.EvilModel",
    "AutoModelForCausalLM": "modeling_evil.EvilModel",
    "AutoTokenizer": ["tokenization_evil.EvilTokenizer", "tokenization_evil.EvilTokenizer"],
}


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_map": MODEL_MAP},
        {"auto_map": MODEL_MAP, "trust_remote_code": True},
        {"auto_map": MODEL_MAP, "model_type": "evil", "trust_remote_code": True},
        {"model_type": "evil", "architectures": ["modeling_evil.EvilModel"]},
        {"text_config": {"auto_map": MODEL_MAP, "trust_remote_code": True, "model_type": "evil"}},
        {"attn_implementation": "evil/kernel:forward"},
        {"attn_implementation": "../../model:forward", "trust_remote_code": True},
        {"quantization_config": {"quant_method": "evil", "modules_to_not_convert": ["os.system"]}},
        {"custom_pipelines": {"text-generation": {"impl": "modeling_evil.EvilModel", "pt": ["AutoModelForCausalLM"]}}},
        {"experts_implementation": "evil/kernel"},
    ],
)
def test_a_model_that_brings_code_runs_none(
    model: Path, canary: Path, make_config: Any, fields: dict[str, Any]
) -> None:
    change(model / "config.json", **fields)
    change(model / "generation_config.json", custom_generate="custom_generate", trust_remote_code=True)
    for load in (lambda: load_model(model, make_config()), lambda: build_empty(model), lambda: load_tokenizer(model)):
        with contextlib.suppress(ModelNotFound, AttributeError):  # of nonsense; whether it loads is not the matter
            load()
    assert not canary.exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"auto_map": MODEL_MAP},
        {"auto_map": {"AutoTokenizer": MODEL_MAP["AutoTokenizer"]}, "tokenizer_class": "EvilTokenizer"},
        {"auto_map": MODEL_MAP, "trust_remote_code": True, "tokenizer_class": "tokenization_evil.EvilTokenizer"},
        {"tokenizer_class": "__import__('os')"},
    ],
)
def test_a_tokenizer_that_brings_code_runs_none(model: Path, canary: Path, fields: dict[str, Any]) -> None:
    change(model / "tokenizer_config.json", **fields)
    with contextlib.suppress(ModelNotFound):
        load_tokenizer(model)
    assert not canary.exists()


def test_a_template_can_not_reach_python(model: Path, canary: Path, open_session: Open) -> None:
    escape = "{{ ''.__class__.__mro__[1].__subclasses__() }}{{ cycler.__init__.__globals__.os.system('touch %s') }}"
    (model / "chat_template.jinja").write_text(escape % canary)
    with pytest.raises(TemplateNotFound, match="is unsafe"):
        open_session(model=model, template_name="auto", dataset_format="alpaca")
    assert not canary.exists()


def test_pickled_weights_are_not_read(model: Path, canary: Path, make_config: Any) -> None:
    (model / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.bin", "model.pt", "model.pkl"):
        (model / name).write_bytes(pickle.dumps(Touch(canary)))
    (model / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "pytorch_model.bin"}}')
    with pytest.raises(ModelNotFound):
        load_model(model, make_config())
    assert not canary.exists()


def test_an_index_of_weights_does_not_lead_outside(model: Path, tmp_path: Path, make_config: Any) -> None:
    """Shards are looked up in the model's folder; that of another model is not taken for them."""
    weights = load_file(model / "model.safetensors")
    (tmp_path / "outside").mkdir()
    save_file(weights, tmp_path / "outside/model.safetensors", metadata={"format": "pt"})
    (model / "model.safetensors").unlink()
    names = dict.fromkeys(weights, "../outside/model.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(ModelNotFound):
        load_model(model, make_config())


@pytest.mark.parametrize(
    "fields",
    [
        {"peft_type": "PROMPT_TUNING", "tokenizer_name_or_path": "evil", "num_virtual_tokens": 1},
        {"megatron_config": {"x": 1}, "megatron_core": "modeling_evil"},
        {"peft_type": "XLORA", "adapters": {"0": "/etc"}},
        {"peft_type": "modeling_evil"},
        {"auto_mapping": {"base_model_class": "EvilModel", "parent_library": "modeling_evil"}, "task_type": None},
    ],
)
def test_an_adapter_that_names_code_runs_none(
    open_session: Open,
    model: Path,
    canary: Path,
    tmp_path: Path,
    fields: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapter = open_session().save(tmp_path / "adapter")
    change(adapter / "adapter_config.json", **fields)
    shutil.copy(model / "modeling_evil.py", adapter)
    monkeypatch.syspath_prepend(str(model))
    is_plain = "auto_mapping" in fields  # which is not read
    with contextlib.nullcontext() if is_plain else pytest.raises(InvalidConfig, match="is not a plain LoRA adapter"):
        open_session("next", adapter_path=str(adapter))
    assert not canary.exists()


def test_a_pickled_adapter_is_not_read(open_session: Open, canary: Path, tmp_path: Path) -> None:
    adapter = open_session().save(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Touch(canary)))
    with pytest.raises(ModelNotFound, match=r"has no adapter_model.safetensors"):
        open_session("next", adapter_path=str(adapter))
    assert not canary.exists()


@pytest.mark.parametrize(
    "name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "adapter_model.bin"]
)
def test_a_checkpoint_that_holds_code_runs_none(open_session: Open, canary: Path, tmp_path: Path, name: str) -> None:
    """Even one whose manifest was made to match."""
    open_session(save_steps=2, max_steps=2).train()
    checkpoint = find_newest_checkpoint(tmp_path / "out/checkpoints")
    assert checkpoint is not None
    torch.save({"state": Touch(canary)}, checkpoint / name)
    seal_checkpoint(checkpoint)
    resumed = open_session(save_steps=2, max_steps=3)
    if name in ("training_args.bin", "adapter_model.bin"):
        resumed.train()  # nobody reads it
    else:
        with pytest.raises(CheckpointUnusable, match="contains pickled objects"):
            resumed.train()
    assert not canary.exists()


EVIL_YAML = [
    "!!python/object/apply:os.system ['touch {canary}']",
    "config: !!python/object/apply:subprocess.check_output [[touch, '{canary}']]",
    "base_model: !!python/object/new:os.system ['touch {canary}']",
    "!!python/module:{module}",
    "base_model: !!python/name:os.system",
    "base_model: &a [*a]",
]


@pytest.mark.parametrize("text", EVIL_YAML)
def test_a_configuration_file_runs_nothing(tmp_path: Path, canary: Path, model: Path, text: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(text.format(canary=canary, module=f"{model}/modeling_evil") + "\n")
    with pytest.raises(TuneyardError):
        SFTConfig.from_yaml(file)
    done = CliRunner().invoke(main, ["submit", str(file), "--url", "http://127.0.0.1:9"])
    assert done.exit_code != 0
    assert not canary.exists()


@pytest.mark.parametrize("parameters", ["others.yaml", "params.yaml"])
def test_a_registry_runs_nothing(tmp_path: Path, canary: Path, parameters: str) -> None:
    """Its stages, parameters and hooks are somebody's code: data is only read from it."""
    registry = tmp_path / "registry"
    registry.mkdir()
    stage = {"cmd": f"touch {canary}", "outs": ["made"]}
    (registry / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"evil": stage}}))
    (registry / "params.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (registry / parameters).write_text(f"x: !!python/object/apply:os.system ['touch {canary}']\n")
    (registry / "rows").mkdir()
    (registry / "rows/train.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    (registry / "rows/rows.py").write_text(f"open({str(canary)!r}, 'w')\n")
    (registry / "linked").mkdir()
    (registry / "linked/train.jsonl").symlink_to("/etc/passwd")
    commit(registry)
    hooks = registry / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-checkout", "reference-transaction", "post-merge", "fsmonitor-watchman"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {canary}\n")
        (hooks / name).chmod(0o755)
    settings = Settings(home=tmp_path / "state", dataset_registry=str(registry))
    if parameters == "params.yaml":
        with pytest.raises(InvalidDataset, match=r"DVC can't read the registry .*params\.yaml"):
            resolve("rows@main", settings)
    else:
        assert resolve("rows@main", settings).rows == 1
    if parameters != "params.yaml":
        assert resolve("linked@main", settings).train_file.read_text() == "/etc/passwd"  # the link itself, not followed
    with pytest.raises(TuneyardError):
        resolve("made@main", settings)
    assert not canary.exists()


def commit(registry: Path) -> None:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(registry.parent / "site")}
    name = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    for command in (
        ("git", "init", "--quiet", "--initial-branch=main"),
        (sys.executable, "-P", "-m", "dvc", "init", "--quiet"),
        ("git", "add", "--all"),
        ("git", *name, "commit", "--quiet", "--message", "x"),
    ):
        subprocess.run(command, cwd=registry, env=environment, check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("name", ["../evil.jsonl", "a/../../evil.jsonl", "/tmp/evil.jsonl", "a/../../../x/evil.jsonl"])
def test_a_list_of_files_does_not_lead_out_of_the_store(tmp_path: Path, name: str) -> None:
    listing = {name: hash_bytes(b"{}\n")}
    with pytest.raises(InvalidDataset, match="outside the dataset's folder"):
        store_dataset(
            tmp_path / "store", combine_md5(listing), listing, lambda _, path: path.write_text("{}\n"), "train"
        )
    assert [path.name for path in tmp_path.rglob("*evil*")] == []


def test_a_download_that_was_killed_leaves_nothing_and_is_made_again(tmp_path: Path) -> None:
    """kill -9 at each step of fetching a dataset into the store."""
    store = tmp_path / "store"

    def fetch(rows: str = "{}\n") -> str:
        listing = {"train.jsonl": hash_bytes(rows.encode()), "eval.jsonl": hash_bytes(rows.encode())}
        md5 = combine_md5(listing)
        stored = store_dataset(store, md5, listing, lambda _, target: target.write_text(rows), "train")
        assert stored.rows == rows.count("\n")
        return md5

    def check() -> None:
        other = fetch("{}\n{}\n")  # whoever fetches another one cleans up
        assert [path.name for path in store.iterdir() if path.is_dir() and path.name != other] in ([], [md5])
        assert fetch() == md5
        assert not list(store.glob(".*/"))
        shutil.rmtree(store)

    md5 = fetch()
    shutil.rmtree(store)
    assert kill_at_each_step(fetch, check) > 30
