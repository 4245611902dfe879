"""`tuneyard export` of adapters in a real MLflow registry, as typed, and what is left when it fails."""

import ast
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from mlflow import MlflowClient
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import cli.__main__ as cli
from cli.export import Form, OutType
from jobs.settings import Settings
from jobs.spec import JobSpec
from sft.adapting.adapter_files import WEIGHTS
from sft.config import SFTConfig
from sft.errors import ExportRefused
from sft.exporting.gguf_conversion import OUTTYPES
from sft.models.loading import quiet_transformers
from tasks.export import MANIFEST, Options, Target, export
from tests.exported_pair import save_adapter, save_pair
from tests.mlflow_server import MlflowServer

IDS = [7, 50, 60, 70]


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """A state folder with a base model, and a registry with its adapters."""
    home, files = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("files")
    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    server.start()
    server.wait()
    try:
        pair = save_pair(files)
        shutil.copytree(pair.base, home / "models/me/base")
        client = MlflowClient(server.uri, registry_uri=server.uri)
        register(client, "support", pair.adapter)
        register(client, "support", save_adapter(pair.base, files / "second", r=2))
        register(client, "dora", save_adapter(pair.base, files / "dora", use_dora=True))
        register(client, "elsewhere", pair.adapter, base_model="me/elsewhere")
        register(client, "whole", pair.base)
        for name, size in {"cut": 3000, "cut-late": (pair.adapter / WEIGHTS).stat().st_size - 100}.items():
            cut = shutil.copytree(pair.adapter, files / name)
            os.truncate(cut / WEIGHTS, size)
            register(client, name, cut)
        bare = shutil.copytree(pair.adapter, files / "bare")
        (bare / "tokenizer_config.json").unlink()
        register(client, "bare", bare)
        yield Settings(home=home, mlflow_tracking_uri=server.uri), pair
    finally:
        server.kill()


def register(client, name, folder, **changes):
    run = client.create_run(client.create_experiment(f"{name}-{folder.name}"))
    client.log_artifacts(run.info.run_id, str(folder), "adapter")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    config = {"base_model": "me/base", "dataset_name": "rows@v1", "dataset_format": "alpaca", "use_qlora": False}
    spec = JobSpec(config=SFTConfig.from_dict(config | changes))
    tags = {"tuneyard.spec": spec.model_dump_json(), "eval_loss": "0.5", "train_loss": "None", "dataset": "rows"}
    source = f"{run.info.artifact_uri}/adapter"
    client.create_model_version(name, source=source, run_id=run.info.run_id, tags=tags, await_creation_for=0)


@pytest.fixture
def run(registry, monkeypatch, tmp_path):
    """Runs the command in an empty folder, with the settings in the environment."""
    settings, _ = registry
    monkeypatch.setenv("TUNEYARD_HOME", str(settings.home))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", settings.mlflow_tracking_uri)
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(cli.main, ["export", *words])


def generate(model):
    with torch.no_grad():
        return model.generate(torch.tensor([IDS]), max_new_tokens=12, do_sample=False, eos_token_id=None)[0].tolist()


def read_base(pair):
    return AutoModelForCausalLM.from_pretrained(pair.base, dtype=torch.float32)


def adapt(model, folder):
    with quiet_transformers():
        return PeftModel.from_pretrained(model, str(folder))


def test_an_adapter_for_peft_is_the_registered_files(registry, run, tmp_path):
    _, pair = registry
    done = run("support@1", "--to", "peft", "--out", "out")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path}/out\n"), done.stderr
    assert done.stderr.startswith("Next: PeftModel.from_pretrained(")
    exported = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    manifest = json.loads(exported.pop(MANIFEST))
    assert (manifest["name"], manifest["version"], manifest["base_model"]) == ("support", "1", "me/base")
    assert exported == {path.name: path.read_bytes() for path in pair.adapter.iterdir()}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_merged_model_generates_as_peft_does(registry, run, tmp_path):
    _, pair = registry
    done = run("support@v1", "--to", "merged", "--json")
    assert done.exit_code == 0, done.stderr
    folder = tmp_path / "support-1-merged"
    assert json.loads(done.stdout)["folder"] == str(folder)
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert generate(merged) == generate(adapt(read_base(pair), pair.adapter)) != generate(read_base(pair))
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"
    card = (folder / "README.md").read_text()
    assert "`me/base` with a LoRA adapter merged" in card
    assert "| held-out loss of the result | 0.5000 |" in card


def test_for_ollama_there_are_both_files_and_a_modelfile(registry, tmp_path):
    settings, _ = registry
    made = export(settings, "support@1", Target.OLLAMA, tmp_path / "out", Options(outtype="f32"))
    assert made.notes == []
    assert made.command == f"ollama create support -f {tmp_path}/out/Modelfile"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"Modelfile", "model.gguf", "adapter.gguf", "chat_template.jinja", MANIFEST}
    modelfile = (tmp_path / "out/Modelfile").read_text()
    assert "FROM ./model.gguf\nADAPTER ./adapter.gguf\nTEMPLATE " in modelfile
    assert modelfile.endswith('PARAMETER stop "<|im_end|>"\nPARAMETER stop "</s>"\nPARAMETER repeat_penalty 1\n')
    assert GGUFReader(tmp_path / "out/adapter.gguf").get_field("adapter.lora.alpha").contents() == 12


@pytest.mark.parametrize("target", ["ollama", "gguf", "vllm", "peft", "merged"])
def test_what_to_run_next_can_be_pasted_for_a_folder_of_any_name(registry, tmp_path, target):
    settings, _ = registry
    folder = tmp_path / 'it\'s "my" $HOME'
    made = export(settings, "support@1", Target(target), folder, Options(target == "merged", outtype="f32"))
    if target in ("peft", "merged"):
        assert ast.literal_eval(made.command.split("(")[1].split(", ")[-1].rstrip(")")) == str(folder)
        return
    words = shlex.split(made.command)
    named = [word for word in words if word.startswith(str(tmp_path))]
    assert {Path(word).parent for word in named} == {folder}
    assert all(Path(word).is_file() for word in named)


@pytest.mark.parametrize("free_bytes", [0, 2**14, 2**17, 2**19])
@pytest.mark.parametrize("target", ["peft", "merged", "gguf", "vllm"])
def test_a_full_disk_is_told_and_nothing_is_left(run, tmp_path, small_disk, target, free_bytes):
    filler = small_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(small_disk).free - free_bytes))
    done = run("support@1", "--to", target, "--out", str(small_disk / "x"), "--json")
    if done.exit_code == 0:  # it fits
        assert free_bytes == 2**19
        return
    assert (done.exit_code, json.loads(done.stderr)["code"]) == (4, "disk_full"), done.stderr
    detail = json.loads(done.stderr)["detail"]
    assert "no space left" in detail
    assert "name a folder on another disk" in detail
    assert "save_total_limit" not in detail, "a remedy for jobs"
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_dora_adapter_goes_merged(registry, run, tmp_path):
    for target in ("gguf", "ollama", "vllm"):
        done = run("dora", "--to", target, "--out", "out")
        assert done.exit_code == 3
        assert "DoRA" in done.stderr
        assert "Add --merged" in done.stderr
        assert list(tmp_path.iterdir()) == []
    done = run("dora", "--to", "gguf", "--merged", "--outtype", "f32", "--out", "out")
    assert done.exit_code == 0, done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"model.gguf", MANIFEST}
    assert f"llama-server --jinja -m {tmp_path}/out/model.gguf\n" in done.stderr


def test_for_vllm_there_are_the_adapter_and_the_command(registry, run, tmp_path):
    settings, pair = registry
    done = run("support", "--to", "vllm", "--out", "out")
    assert done.exit_code == 0, done.stderr
    assert (
        f"exec vllm serve {settings.home}/models/me/base --enable-lora --max-lora-rank 8 "
        in (tmp_path / "out/serve.sh").read_text()
    )
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["version"] == "2"
    assert generate(adapt(read_base(pair), tmp_path / "out/adapter")) != generate(read_base(pair))
    done = run("elsewhere", "--to", "vllm", "--out", "other")
    assert "vllm serve me/elsewhere --enable-lora" in (tmp_path / "other/serve.sh").read_text()
    assert "warning: the base model is not on this machine" in done.stderr


def test_a_whole_model_is_no_adapter(registry, run, tmp_path):
    assert "is a whole model (use_lora false), not an adapter" in run("whole", "--to", "peft").stderr
    done = run("whole", "--to", "vllm", "--out", "out")
    assert done.exit_code == 0, done.stderr
    assert "exec vllm serve model --served-model-name whole " in (tmp_path / "out/serve.sh").read_text()
    assert (tmp_path / "out/model/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["suport@1", "--to", "peft"], "no adapter is named suport; did you mean support? registered are "),
        (["support@9", "--to", "peft"], "support has no version 9; it has 2, 1"),
        (["support@x", "--to", "peft"], "'support@x' is not of the form NAME@VERSION, NAME@latest or NAME"),
        (["elsewhere", "--to", "merged"], "me/elsewhere"),
        (["elsewhere", "--to", "gguf"], "me/elsewhere"),
        (["cut", "--to", "peft"], "cut version 1 can't be exported: adapter_model.safetensors is cut off"),
        (["cut-late", "--to", "merged"], "cut-late version 1 can't be exported: adapter_model.safetensors is cut off"),
        (["bare", "--to", "peft"], "bare version 1 has no tokenizer in the registry"),
        (["support", "--to", "gguf", "--llama-cpp", "."], "--llama-cpp . has no convert_hf_to_gguf.py"),
    ],
)
def test_what_cant_be_exported_is_told_and_leaves_nothing(run, tmp_path, words, message):
    done = run(*words)
    assert done.exit_code == 3, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_an_export_is_replaced(run, registry, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    for words in ([], ["--force"]):
        done = run("support@1", "--to", "peft", "--out", "own", *words)
        assert done.exit_code == 3
        assert "own has other files than an export's; name a new or empty folder" in done.stderr
    assert (own / "thesis.txt").read_text() == "mine"
    assert run("support@1", "--to", "peft", "--out", "out").exit_code == 0
    assert "has an export already; replace it by --force" in run("support@2", "--to", "peft", "--out", "out").stderr
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["version"] == "1"
    assert run("support@2", "--to", "peft", "--out", "out", "--force").exit_code == 0
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["version"] == "2"
    settings, _ = registry
    inside = run("support@1", "--to", "peft", "--out", str(settings.model_root / "me/base/merged"))
    assert "is in the model root" in inside.stderr
    with pytest.raises(ExportRefused):
        export(settings, "dora", Target.GGUF, tmp_path / "out", Options(replace=True))
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["version"] == "2"


def test_what_was_put_beside_an_export_is_not_replaced(run, tmp_path):
    assert run("support@1", "--to", "peft", "--out", "out").exit_code == 0
    (tmp_path / "out/mine").mkdir()
    (tmp_path / "out/mine/notes.txt").write_text("mine")
    done = run("support@2", "--to", "peft", "--out", "out", "--force")
    assert (done.exit_code, "(mine/notes.txt); move them first" in done.stderr) == (3, True)
    assert (tmp_path / "out/mine/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", ["file/x", "/proc/x", "nowhere", "link"])
def test_a_folder_that_cant_be_made_is_told(run, tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to("at-all")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    before = sorted(tmp_path.iterdir())
    done = run("support@1", "--to", "peft", "--out", place)
    assert (done.exit_code, "Traceback" in done.stderr) == (3, False)
    assert str(tmp_path / place) in done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_the_command_has_the_forms_and_formats_that_there_are():
    assert [one.value for one in Form] == [one.value for one in Target]
    assert [one.value for one in OutType] == list(OUTTYPES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "peft", "--merged"], "--merged is for gguf, ollama and vllm"),
        (["--to", "merged", "--outtype", "f32"], "--outtype and --llama-cpp are for gguf and ollama, not for merged"),
        (["--to", "vllm", "--llama-cpp", "."], "--outtype and --llama-cpp are for gguf and ollama, not for vllm"),
    ],
)
def test_an_option_of_another_form_is_a_usage_error(run, words, message):
    done = run("support", *words)
    assert done.exit_code == 2
    assert message in done.stderr


def test_an_unknown_form_is_a_usage_error(run):
    done = run("support", "--to", "onnx")
    assert done.exit_code == 2
    assert "'onnx' is not one of 'peft', 'merged', 'gguf', 'ollama', 'vllm'" in done.stderr
