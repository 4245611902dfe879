"""What is known of a job when it is submitted: over real files, a real git repository, and scripted servers."""

import json
import os
import stat
import subprocess
import threading
import time
from functools import partial

import psutil
import pytest
from transformers.trainer_optimizer import _BITSANDBYTES_OPTIMIZERS
from transformers.training_args import OptimizerNames

from jobs import preflight
from jobs.preflight import Finding, Preflight, SubmissionCheck, dataset_registry, hub
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.stack.endpoints import Endpoints
from sft.chat.named_templates import TEMPLATES
from sft.errors import ModelNotFound
from tests.client.scripted_service import Scripted, ScriptedService
from tests.conftest import command_line, wait_until
from tuneyard_wire.dataset_reference import DatasetReference

EMPTY_WEIGHTS = (2).to_bytes(8, "little") + b"{}"  # a safetensors file without a tensor
ONE_HEADER = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
ONE_WEIGHT = len(ONE_HEADER).to_bytes(8, "little") + ONE_HEADER + bytes(4)
PREFECT = "http://127.0.0.1:9/api"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
NAMES = {"base_model": "model_name"}


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """The Hub is away and its cache empty, unless a test says otherwise; nothing is remembered of other tests."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(hub, "_unreachable_until", 0.0)
    for remembered in (hub._known, hub._name_locks, dataset_registry._found):
        remembered.clear()


@pytest.fixture
def settings(tmp_path):
    """Of a local stack without a GPU whose model root has `acme/good`."""
    settings = Settings(home=tmp_path / "home")
    settings.home.mkdir()
    run_stack(settings)
    make_model(settings.model_root / "acme/good")
    (settings.data_root).mkdir()
    return settings


def run_stack(settings, *gpus, local=("prefect_api_url",)):
    Endpoints(True, {"prefect_api_url": PREFECT}, local, gpus).write(settings.home)


def make_model(folder, tokens=("<|im_start|>", "<|im_end|>"), **config):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(EMPTY_WEIGHTS)
    vocabulary = {"added_tokens": [{"id": n, "content": token} for n, token in enumerate(tokens)]}
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    declared = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": "{{ x }}"} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(declared))
    return folder


def spec(**config):
    around = {name: config.pop(name) for name in ("tracking_backend",) if name in config}
    good = {"base_model": "acme/good", "dataset_name": "handbook@v1.0", "dataset_format": "chat"}
    return JobSpec.build(config=good | config, **around)


def look(settings, **config):
    """What is found, as code and message."""
    findings = Preflight(settings, seconds=20).run(spec(**config))
    return [(finding.kind.code, finding.message({})) for finding in findings]


def the_only(settings, **config):
    (found,) = look(settings, **config)
    return found


def test_a_good_job_has_nothing_to_be_said_of(settings):
    assert look(settings) == []
    assert look(settings, template_name="chatml", output_dir="mine", tracking_backend="wandb") == []


# -- models


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("acme/nothing", "is neither in the model root ({root}/acme/nothing) nor in the Hugging Face cache, and the"),
        ("gpt2", "is neither in the model root ({root}/gpt2) nor in the Hugging Face cache, and the Hub can't be"),
        ("a/b/c", "and is not a model id of the Hub; put its files into {root}/a/b/c (`tuneyard models add`)"),
        ("has space/x", "and is not a model id of the Hub"),
        ("/models/my-base", "must be a model id or a path below the model root {root}; `tuneyard models add` adds"),
        ("../outside", "must be a model id or a path below the model root {root}"),
    ],
)  # fmt: skip
def test_a_model_that_is_nowhere(settings, name, told):
    code, message = the_only(settings, base_model=name)
    assert code == "model_not_found"
    assert message.startswith(f"base_model {name!r} ")
    assert told.format(root=settings.model_root) in message


def write(folder, name, content):
    (folder / name).write_text(content)


def test_a_models_files_are_read_once_while_they_stay_the_same_and_never_when_they_are_long(settings, monkeypatch):
    read, parse = [], json.loads
    monkeypatch.setattr(
        "sft.models.weights.json.loads", lambda text: (read.append(len(text)), parse(text))[1]
    )  # only counts
    look(settings)
    first = len(read)
    look(settings)
    assert len(read) == first
    weights = settings.model_root / "acme/good/model.safetensors"
    weights.write_bytes(b"\1")
    assert the_only(settings)[0] == "model_unusable"  # what has changed is looked at again
    length = 5 * 2**20
    weights.write_bytes(length.to_bytes(8, "little") + b"[" * length)
    assert look(settings) == []
    assert length not in read
    weights.write_bytes((length + 1).to_bytes(8, "little") + b"[" * length)  # longer than the file
    assert the_only(settings)[0] == "model_unusable"


BROKEN = {
    "weights that are a pointer": (lambda f: write(f, "model.safetensors", LFS), "safetensors is a Git LFS pointer"),
    "weights that are cut off": (lambda f: write(f, "model.safetensors", "x"), "is not a safetensors file"),
    "a configuration that is a pointer": (lambda f: write(f, "config.json", LFS), "config.json is a Git LFS pointer"),
    "a configuration that is not JSON": (lambda f: write(f, "config.json", "{"), "config.json is not valid JSON"),
    "a configuration that is a list": (lambda f: write(f, "config.json", "[]"), "config.json must hold an object"),
    "other weights": (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "has pickled weights"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "told"), BROKEN.values(), ids=BROKEN)
def test_a_model_that_can_not_be_loaded(settings, spoil, told):
    spoil(make_model(settings.model_root / "acme/broken"))
    code, message = the_only(settings, base_model="acme/broken")
    assert (code, told in message) == ("model_unusable", True), message
    assert message.startswith("base_model 'acme/broken' ")


def test_an_adapter_is_no_base_model(settings):
    folder = make_model(settings.model_root / "acme/adapter")
    (folder / "config.json").rename(folder / "adapter_config.json")
    code, message = the_only(settings, base_model="acme/adapter")
    assert code == "model_not_found"
    assert "is an adapter, not a base model; name its base model, and " in message


def test_a_link_out_of_the_model_root(settings, tmp_path):
    make_model(tmp_path / "elsewhere")
    (settings.model_root / "linked").symlink_to(tmp_path / "elsewhere")
    code, message = the_only(settings, base_model="linked")
    assert code == "model_not_found"
    assert f"'linked': {settings.model_root}/linked is a link that leaves the model root" in message
    assert "Copy the files, or add its target to TUNEYARD_ALLOWED_MODEL_ROOTS and restart" in message
    allowed = settings.model_copy(update={"allowed_model_roots": (tmp_path / "elsewhere",)})
    assert look(allowed, base_model="linked") == []
    (make_model(settings.model_root / "partly") / "vocab.txt").symlink_to("/etc/hostname")
    assert "partly/vocab.txt is a link that leaves the model root" in the_only(settings, base_model="partly")[1]


def test_a_model_in_the_hubs_cache(settings, tmp_path):
    make_model(tmp_path / "hf/hub/models--acme--cached/snapshots/0123")
    assert look(settings, base_model="acme/cached") == []


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (Scripted(body=json.dumps({"siblings": [{"rfilename": "model.safetensors"}]})), None),
        (Scripted(body=json.dumps({"siblings": [{"rfilename": "pytorch_model.bin"}]})), "it has no safetensors"),
        (Scripted(404, "{}"), "the Hub has no such model that you can access; put its files"),
        (Scripted(401, "{}"), "the Hub has no such model that you can access; put its files"),
        (Scripted(500, "oops"), None),
        (Scripted(200, "oops"), None),
        (Scripted(302, "", {"Location": "http://127.0.0.1:9/"}), "the Hub can't be reached"),
    ],
)
def test_what_the_hub_says_of_a_model(settings, monkeypatch, answer, told):
    server = ScriptedService(answer)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    try:
        found = look(settings, base_model="acme/far")
    finally:
        server.close()
    assert [message for _, message in found if told in message] if told else not found
    assert (server.received[0].path, server.received[0].headers["authorization"]) == (
        "/api/models/acme/far",
        "Bearer hf_secret",
    )


def test_a_hub_that_is_away_is_asked_once_a_minute(settings, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://nowhere.invalid")
    assert "the Hub can't be reached" in the_only(settings, base_model="acme/far")[1]
    monkeypatch.setattr(hub, "_request", lambda *_: pytest.fail("asked again"))
    assert "the Hub can't be reached" in the_only(settings, base_model="acme/other")[1]


# -- templates


@pytest.mark.parametrize("name", ["llama3", "gemma", "phi3"])
def test_a_template_whose_tokens_the_tokenizer_lacks(settings, name):
    code, message = the_only(settings, template_name=name)
    assert code == "template_not_found"
    assert message.startswith(f"template_name {name} needs {TEMPLATES[name].special_tokens[0]}")
    assert "which the tokenizer of this model lacks; templates it can use: " in message
    assert "chatml" in message.rpartition(": ")[2].split(", ")


@pytest.mark.parametrize("name", [*TEMPLATES])
@pytest.mark.parametrize("is_ascii", [True, False])
def test_no_template_is_said_not_to_suit_a_tokenizer_that_has_its_tokens(settings, name, is_ascii):
    folder = make_model(settings.model_root / "full", TEMPLATES[name].special_tokens, bos_token="<s>")
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary, ensure_ascii=is_ascii))
    assert look(settings, base_model="full", template_name=name) == []


def test_a_model_without_a_whole_tokenizer_is_told(settings):
    folder = make_model(settings.model_root / "mute")
    (folder / "tokenizer.json").write_text('{"added_tokens": [')
    assert the_only(settings, base_model="mute") == (
        "model_unusable",
        "base_model 'mute' has a damaged tokenizer.json; copy or download it again",
    )
    (folder / "tokenizer.json").unlink()
    assert (
        "has no tokenizer (tokenizer.json); copy or download its files too" in the_only(settings, base_model="mute")[1]
    )


def test_auto_needs_a_template_of_the_models(settings):
    make_model(settings.model_root / "bare", chat_template=None)
    code, message = the_only(settings, base_model="bare")
    assert code == "template_not_found"
    assert "auto needs a tokenizer with a chat template and this model's has none; templates it can use:" in message
    assert look(settings, base_model="bare", dataset_format="completion") == []
    assert look(settings, base_model="bare", dataset_format="auto") == []
    (settings.model_root / "bare/chat_template.jinja").write_text("{{ x }}")
    assert look(settings, base_model="bare") == []


def test_a_tokenizer_that_is_changed_is_looked_at_again(settings):
    make_model(settings.model_root / "changing", ())
    assert look(settings, base_model="changing", template_name="chatml")
    path = settings.model_root / "changing/tokenizer.json"
    path.write_text(json.dumps({"added_tokens": ["<|im_start|>", "<|im_end|>"]}))
    os.utime(path, ns=(1, 1))
    assert look(settings, base_model="changing", template_name="chatml") == []


# -- datasets


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A registry with what `dvc add` and stages leave in git: no data, but for one file of rows."""
    folder = tmp_path_factory.mktemp("registry")
    git(folder.parent, "init", "-q", "-b", "main", str(folder))
    (folder / "support").mkdir()
    outs = "outs:\n- md5: 0\n  path: {}\n"
    write(folder, "added.dvc", outs.format("added"))
    write(folder, "rows.jsonl.dvc", outs.format("rows.jsonl"))
    write(folder, "support/tickets.dvc", outs.format("tickets"))
    write(folder, "other-name.dvc", outs.format("renamed"))
    write(folder, "plain.csv", "text\na\n")
    write(folder, "dvc.yaml", "stages:\n  s:\n    cmd: x\n    outs:\n    - made\n    - big:\n        cache: false\n")
    write(folder, "broken.dvc", ": [")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "1")
    git(folder, "tag", "v1")
    write(folder, "later.dvc", outs.format("later"))
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "2")
    return folder


@pytest.fixture
def with_registry(settings, repository):
    return settings.model_copy(update={"dataset_registry": str(repository)})


@pytest.mark.parametrize(
    "reference",
    ["added@v1", "rows@v1", "rows.jsonl@main", "support/tickets@v1", "support@v1", "renamed@v1", "plain@v1", "made@v1",
     "big@main", "added/part@v1", "later@main", "later@HEAD", "added", "later"],
)  # fmt: skip
def test_a_dataset_of_the_registry(with_registry, reference):
    assert look(with_registry, dataset_name=reference) == []


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("added@v9", "'v9' is not a revision in the dataset registry {}; tags: v1; branches: main"),
        (
            "later@v1",
            "'later@v1' is not in the dataset registry {}; it has: added, big, made, renamed, rows.jsonl, support",
        ),
        ("nope@main", "'nope@main' is not in the dataset registry {}; it has: added, "),
        (
            "nope@v9",
            "'v9' is not a revision in the dataset registry {}; tags: v1; branches: main; no dataset 'nope' was added",
        ),
        (
            "handbook@v9",
            "'v9' is not a revision in the dataset registry {}; tags: v1; branches: main; a dataset ",
        ),
        ("x@-v", "'-v' is not a revision"),
        ("@v1", "'@v1' is not of the form name@revision"),
        ("x@/data/acme.jsonl", "'/data/acme.jsonl' looks like a file, not a revision; put the file below "),
        ("x@rows.csv", "'rows.csv' looks like a file, not a revision; put the file below "),
    ],
)
def test_a_dataset_that_the_registry_lacks(with_registry, repository, reference, told):
    code, message = the_only(with_registry, dataset_name=reference)
    assert code == "dataset_not_found"
    assert message.startswith("dataset_name " + told.format(repository)), message


def test_every_dataset_of_a_list_is_looked_at_and_named_by_its_place(with_registry, repository):
    sources = ["added@v1", "added@v9", {"name": "nope@main", "weight": 2}]
    fields = {"dataset_name": sources, "validation_dataset": ["added@v1", "x@-v"]}
    messages = [message for _, message in look(with_registry, **fields)]
    assert [message.split()[0] for message in messages] == [
        "dataset_name.1", "dataset_name.2", "validation_dataset.1",
    ]  # fmt: skip
    assert messages[0].startswith(f"dataset_name.1 'v9' is not a revision in the dataset registry {repository}")
    found = Preflight(with_registry, seconds=20).run(spec(**fields))
    assert found[0].message({"dataset_name": "dataset_version"}).startswith("dataset_version.1 'v9' ")


def test_a_short_commit_is_a_revision(with_registry, repository):
    commit = subprocess.run(["git", "-C", repository, "rev-parse", "v1"], capture_output=True, text=True, check=True)
    assert look(with_registry, dataset_name=f"added@{commit.stdout[:8]}") == []
    assert the_only(with_registry, dataset_name=f"later@{commit.stdout[:8]}")[0] == "dataset_not_found"


def doubled(first, line):
    """Ten times as much with each line."""
    return first + "".join(line(n, [f"*b{n - 1}" if n else "*a"] * 10) for n in range(9))


HOSTILE = {
    "merge keys": doubled("a: &a {k: v}\n", lambda n, ten: f"b{n}: &b{n} {{<<: [{', '.join(ten)}]}}\n"),
    "aliases as an output": doubled("a: &a [x]\n", lambda n, ten: f"b{n}: &b{n} [{', '.join(ten)}]\n") + "outs: [*b8]",
    "aliases as a path": doubled("a: &a [x]\n", lambda n, ten: f"b{n}: &b{n} [{', '.join(ten)}]\n")
    + "outs: [{path: *b8}]",
    "merge keys of stages": doubled("a: &a {k: v}\n", lambda n, ten: f"b{n}: &b{n} {{<<: [{', '.join(ten)}]}}\n")
    + "stages: *b8",
    "nested lists": "outs: " + "[" * 100_000,
    "nested objects": "{a: " * 100_000,
    "too long": "stages:\n" + "".join(f"  s{n}: {{outs: [d{n}]}}\n" for n in range(100_000)),
    "a long number": "outs: [" + "1" * 100_000 + "]",
    "no YAML": "%\x00",
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("file", ["dvc.yaml", "x.dvc"])
def test_a_registrys_files_take_no_time_whatever_they_hold(settings, tmp_path, kind, file):
    make_repository(tmp_path / "hostile", {file: HOSTILE[kind]})
    settings = settings.model_copy(update={"dataset_registry": str(tmp_path / "hostile")})
    began = time.monotonic()
    found = look(settings, dataset_name="nothing@main")
    assert time.monotonic() - began < 12  # of the twenty that `look` would wait
    assert {code for code, _ in found} <= {"dataset_not_found"}


def test_many_datasets_are_found_in_time(settings, tmp_path, monkeypatch):
    """Which took a process of git's each, and so longer than a submission waits."""
    folder = make_repository(tmp_path / "many", {f"d{n}.dvc": f"outs:\n- path: data{n}\n" for n in range(1000)})
    view = dataset_registry.RegistryView(folder, True)
    monkeypatch.setattr("jobs.preflight.repository.SECONDS", 60.0)
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **options: started.append(1) or popen(*given, **options))
    assert view.find_problem(DatasetReference("data999", "main")) is None
    assert "it has: data0, data1, data10" in view.find_problem(DatasetReference("nothing", "main"))
    assert 0 < len(started) < 50


def make_repository(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(content)
    for command in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=folder, check=True)
    return folder


STALLING = {"it hangs": "sleep 60", "its child hangs": "sleep 60 &", "it never ends": "yes"}


@pytest.mark.parametrize("kind", STALLING)
def test_a_registry_that_hangs_is_given_up_and_keeps_no_turn(settings, tmp_path, monkeypatch, kind):
    folder = make_repository(tmp_path / "stalling", {"x.dvc": "outs: []"})
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "git").write_text(f"#!/bin/sh\n{STALLING[kind]}\n")
    (programs / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr("jobs.preflight.repository.SECONDS", 2.0)
    stalling = settings.model_copy(update={"dataset_registry": str(folder)})
    looks, seconds = Preflight(stalling, seconds=0.1), []
    for number in range(12):
        began = time.monotonic()
        assert looks.run(spec(dataset_name=f"d{number}@main")) == []
        seconds.append(time.monotonic() - began)
    assert sorted(seconds)[len(seconds) // 2] < 1
    assert all(looks._slots.acquire(timeout=60) for _ in range(preflight.MAX_RUNNING))

    def are_gone():
        children = psutil.Process().children(recursive=True)
        return not [child for child in children if "60" in command_line(child) and "sleep" in command_line(child)]

    wait_until(are_gone, 30)


def test_the_default_registry_is_known_before_it_is_built(settings):
    assert (
        "'v9' is not a revision in the dataset registry; tags: v1.0, v1.1"
        in the_only(settings, dataset_name="handbook@v9")[1]
    )
    assert (
        "'nope@v1.0' is not in the dataset registry; it has: handbook"
        in the_only(settings, dataset_name="nope@v1.0")[1]
    )
    assert look(settings, dataset_name="handbook@main") == look(settings, dataset_name="handbook") == []


def test_a_mirror_of_somebody_elses_registry_may_be_behind(settings, repository):
    url = "https://example.invalid/registry"
    elsewhere = settings.model_copy(update={"dataset_registry": url})
    assert look(elsewhere, dataset_name="nope@v9") == []
    from tasks.dataset_registry import mirror_registry  # what a job keeps it in

    mirror = settings.home / "registries"
    with pytest.raises(Exception, match="git"):
        mirror_registry(url, settings.home)
    assert mirror.is_dir()
    assert look(elsewhere, dataset_name="nope@v9") == []


@pytest.mark.parametrize(
    ("name", "content", "code", "told"),
    [
        (
            "rows.xlsx",
            "x",
            "invalid_dataset",
            "must end in one of .jsonl, .json, .parquet, .csv, .jsonl.gz, .jsonl.zst",
        ),
        ("rows.jsonl", LFS, "invalid_dataset", "is a Git LFS pointer, not the data; run `git lfs pull`"),
        ("rows.csv", "PK\x03\x04", "invalid_dataset", "is a ZIP archive or an Excel file"),
        ("rows.json", "<!DOCTYPE html>", "invalid_dataset", "is a web page, perhaps that of a login"),
        ("rows.jsonl.bz2", "x", "invalid_dataset", "must end in one of .jsonl, .json, .parquet, .csv"),
        ("rows.jsonl.gz", "x", "invalid_dataset", "is not compressed as its name says"),
        ("rows.parquet", "", "invalid_dataset", "is empty"),
        (None, "", "dataset_not_found", "is not a file or folder below the data root"),
    ],
)
def test_a_file_that_is_no_dataset(settings, name, content, code, told):
    if name:
        write(settings.data_root, name, content)
    found, message = the_only(settings, dataset_name=name or "missing.jsonl")
    assert (found, told in message) == (code, True), message


def test_a_file_or_folder_of_rows(settings):
    write(settings.data_root, "rows.jsonl", "{}\n")
    (settings.data_root / "folder").mkdir()
    assert "has no rows: a folder must contain a file for each split" in the_only(settings, dataset_name="folder")[1]
    write(settings.data_root / "folder", "train.jsonl", "{}\n")
    assert look(settings, dataset_name="rows.jsonl") == look(settings, dataset_name="folder") == []
    write(settings.data_root / "folder", "train.jsonl", LFS)
    assert "'folder': train.jsonl is a Git LFS pointer" in the_only(settings, dataset_name="folder")[1]
    (settings.data_root / "folder/train.jsonl").unlink()
    (settings.data_root / "folder/train.jsonl").symlink_to("/etc/hostname")
    assert "folder/train.jsonl leads outside " in the_only(settings, dataset_name="folder")[1]
    assert "leads outside the data root" in the_only(settings, dataset_name="../x.jsonl")[1]


def test_a_dataset_on_the_hub(settings, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for status, expected in ((200, []), (404, ["dataset_not_found"])):
        server = ScriptedService(Scripted(status, "{}"))
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        found = look(settings, dataset_name=f"acme/rows-{status}")
        server.close()
        assert [code for code, _ in found] == expected
        assert server.received[0].path == f"/api/datasets/acme/rows-{status}"


# -- adapters


def test_a_folder_without_an_adapter(settings):
    (settings.output_root / "old").mkdir(parents=True)
    code, message = the_only(settings, adapter_path="old")
    assert code == "model_not_found"
    assert message.startswith("adapter_path 'old' is not a folder with an adapter_config.json under ")
    write(settings.output_root / "old", "adapter_config.json", "{}")
    code, message = the_only(settings, adapter_path="old")
    assert (code, message[:63]) == (
        "model_not_found",
        "adapter_path 'old' has no adapter_model.safetensors, the only w",
    )
    (settings.output_root / "old/adapter_model.safetensors").write_bytes(EMPTY_WEIGHTS)
    assert "holds no weights" in the_only(settings, adapter_path="old")[1]
    (settings.output_root / "old/adapter_model.safetensors").write_bytes(ONE_WEIGHT)
    assert look(settings, adapter_path="old") == []


HUGE = b'{"a": {"dtype": "F32", "shape": [1152921504606846976], "data_offsets": [0, 4611686018427387904]}}'


def test_weights_that_claim_more_than_there_is(settings):
    content = len(HUGE).to_bytes(8, "little") + HUGE + bytes(16)
    (settings.output_root / "old").mkdir(parents=True)
    write(settings.output_root / "old", "adapter_config.json", "{}")
    (settings.output_root / "old/adapter_model.safetensors").write_bytes(content)
    (settings.model_root / "acme/good/model.safetensors").write_bytes(content)
    found = look(settings, adapter_path="old")
    assert [code for code, _ in found] == ["model_unusable"] * 2
    assert all("model.safetensors is cut off: it has 121 bytes and should have 4611686018427388" in m for _, m in found)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "special_tokens_map.json"])
def test_a_text_file_of_a_gigabyte_is_not_read(settings, name):
    with (settings.model_root / "acme/good" / name).open("wb") as file:
        file.truncate(2**30)
    code, message = the_only(settings)
    assert code == "model_unusable"
    assert f"{name} has 1073741824 bytes, and no more than" in message


MODEL = Scripted(
    body=json.dumps({"registered_model": {"latest_versions": [{"version": "3"}], "aliases": [{"alias": "best"}]}})
)
EMPTY = Scripted(body=json.dumps({"registered_model": {"name": "x"}}))


@pytest.mark.parametrize(
    ("reference", "answers", "told"),
    [
        ("models:/x/3", [MODEL, Scripted(body="{}")], None),
        ("models:/x/latest", [MODEL], None),
        ("models:/x@best", [MODEL], None),
        ("models:/x/9", [MODEL, Scripted(404, "{}")], "x has no version 9; its newest version is 3"),
        ("models:/x/nine", [MODEL, Scripted(400, "{}")], "x has no version nine; its newest version is 3"),
        ("models:/x@worst", [MODEL], "x has the aliases best"),
        ("models:/x/latest", [EMPTY], "x has no versions"),
        ("models:/y/1", [Scripted(404, "{}")], "it has no adapter y; train one with lora_name y, or name another"),
        ("models:/y", [MODEL], "is not of the form models:/NAME/VERSION"),
        ("models:/x/3", [Scripted(500, "oops")], None),
    ],
)
def test_an_adapter_of_the_registry(settings, reference, answers, told):
    server = ScriptedService(*answers)
    try:
        found = look(settings.model_copy(update={"mlflow_tracking_uri": server.url}), adapter_path=reference)
    finally:
        server.close()
    assert [code for code, message in found if told in message] == ["model_not_found"] if told else found == []


# -- workers


@pytest.mark.parametrize(
    ("gpus", "workers", "config", "told"),
    [
        ((), None, {"use_qlora": True}, "use_qlora needs a CUDA device and no worker has one; set it to false"),
        ((), None, {"mixed_precision": "fp16"}, "mixed_precision fp16 needs a CUDA device and no worker has one"),
        ((), None, {"num_devices": 4096}, "num_devices is 4096, but there is no GPU and the CPU has"),
        (
            ("0",),
            None,
            {"num_devices": 2},
            "num_devices is 2, but a worker has 1 GPU; set it to 1 at most, or TUNEYARD_W",
        ),
        (tuple("0123"), 2, {"num_devices": 3}, "num_devices is 3, but a worker has 2 GPUs; set it to 2 at most"),
        (tuple("0123"), 2, {"num_devices": 2, "mixed_precision": "fp16"}, None),
        (tuple("0123"), 1, {"device_map": "auto"}, "device_map 'auto' would spread the model over the 4 GPUs"),
        (tuple("0123"), 4, {"device_map": "cuda:1"}, "device_map 'cuda:1' is not there: this worker has 1 GPU"),
        (("0",), None, {"device_map": "cpu"}, "device_map 'cpu' is not a GPU of this machine"),
        (("0",), None, {"device_map": "auto"}, None),
        ((), None, {"device_map": "auto"}, None),
        ((), None, {"num_devices": 1, "mixed_precision": "bf16"}, None),
    ],
)
def test_devices(settings, gpus, workers, config, told):
    run_stack(settings, *gpus)
    found = look(settings.model_copy(update={"workers": workers}), **config)
    assert [code for code, message in found if message.startswith(told)] == ["invalid_config"] if told else found == []


@pytest.mark.parametrize("name", [name.value for name in OptimizerNames])
def test_an_optimizer_without_its_package(settings, monkeypatch, name):
    run_stack(settings)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda *_: None)
        found = look(settings, optimizer_type=name)
    wanted = f"optimizer_type {name!r} needs the package bitsandbytes; install Tuneyard's extra `cuda`"
    assert [message.startswith(wanted) for _, message in found] == [True] * (name in _BITSANDBYTES_OPTIMIZERS)


@pytest.mark.parametrize("field", ["output_dir", "checkpoint_dir"])
def test_a_folder_that_can_not_be_written_to(settings, field, tmp_path):
    code, message = the_only(settings, **{field: "/usr/share/x"})
    assert (code, message[: len(field) + 19]) == ("invalid_config", f"{field} must be in one of ")
    settings.output_root.mkdir()
    write(settings.output_root, "file", "")
    assert f"{field} 'file/x' can't be created: " in the_only(settings, **{field: "file/x"})[1]
    assert look(settings, **{field: "new/one"}) == []
    (settings.output_root / "closed").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    if os.access(settings.output_root / "closed", os.W_OK):
        return  # root may write everywhere
    assert "is read-only here" in the_only(settings, **{field: "closed/x"})[1]


def test_a_tracking_backend_without_its_package(settings, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    assert the_only(settings, tracking_backend="wandb") == (
        "invalid_config",
        "tracking_backend wandb needs the package wandb; install it, or use mlflow",
    )


# -- only what can be seen, and in time


def test_of_workers_elsewhere_nothing_is_known(tmp_path):
    settings = Settings(home=tmp_path / "home", prefect_api_url="http://far/api")
    settings.home.mkdir()
    everything = {
        "base_model": "a/b", "dataset_name": "x@v9", "adapter_path": "y", "use_qlora": True, "num_devices": 999,
        "tracking_backend": "wandb",
    }  # fmt: skip
    assert look(settings, **everything) == []
    run_stack(settings)  # another stack's, of the same folder
    assert look(settings, **everything) == []
    run_stack(settings, local=())
    assert look(settings, **everything) == []


def test_what_is_missing_in_a_model_root_that_is_here_may_be_on_a_worker(tmp_path):
    settings = Settings(home=tmp_path / "home", prefect_api_url="http://far/api")
    settings.model_root.mkdir(parents=True)
    code, message = the_only(settings, base_model="a/b/c")
    assert code == "model_not_found"
    assert message.endswith(". Not found on the API host; if it is only on a worker, run `tuneyard plan --here` there")
    assert look(settings, base_model="a/b") == []  # the Hub is away from here only


def test_what_takes_too_long_is_not_said_and_holds_up_nobody(settings, monkeypatch):
    release = threading.Event()

    def hang(*_):
        release.wait(30)
        yield from ()

    monkeypatch.setattr(preflight, "CHECKS", ((hang,), *preflight.CHECKS[1:]))
    looking, before = Preflight(settings), threading.active_count()
    began = time.monotonic()
    findings = [looking.run(spec(base_model="a/b/c", use_qlora=True)) for _ in range(3)]
    assert time.monotonic() - began < 15  # a check alone hangs for thirty
    assert {tuple(finding.field for finding in found) for found in findings} <= {("use_qlora",), ()}
    monkeypatch.setattr(preflight, "CHECKS", ((hang,),) * 40)
    for _ in range(3):
        looking.run(spec())
    assert threading.active_count() - before < preflight.MAX_RUNNING + 10
    release.set()


def test_a_check_that_breaks_says_nothing(settings, monkeypatch):
    def fail(*_):
        raise RuntimeError

    monkeypatch.setattr(preflight, "CHECKS", ((fail, *preflight.CHECKS[0]), *preflight.CHECKS[1:]))
    assert look(settings) == []


def test_a_state_folder_that_can_not_be_read_says_nothing(settings):
    (settings.home / "endpoints.json").write_text("{")
    assert look(settings, base_model="a/b/c") == []


def test_findings_are_told_in_an_interfaces_words_or_raised(settings):
    findings = Preflight(settings, seconds=20).run(spec(base_model="a/b/c", dataset_name="x@v9", use_qlora=True))
    beside, instead = (
        SubmissionCheck(lambda: lambda: findings, NAMES),
        SubmissionCheck(lambda: lambda: findings, NAMES, is_strict=True),
    )

    assert beside.refusal is None
    assert [warning["code"] for warning in beside.warnings] == [
        "model_not_found",
        "dataset_not_found",
        "invalid_config",
    ]
    assert beside.warnings[0]["message"].startswith("model_name 'a/b/c' is neither in")
    assert isinstance(instead.refusal, ModelNotFound)
    lines = str(instead.refusal).splitlines()
    assert lines[:-1] == [warning["message"] for warning in beside.warnings]
    assert lines[-1] == "To submit the job anyway, turn strict off (?strict=false, --no-strict)"
    assert (SubmissionCheck(is_strict=True).refusal, SubmissionCheck().warnings) == (None, ())


def test_what_is_told_beside_an_answer_is_waited_for_when_it_is_needed(settings, monkeypatch):
    release = threading.Event()
    found = [Finding(ModelNotFound, "base_model", "is not there")]
    monkeypatch.setattr(preflight, "CHECKS", ((lambda *_: found if release.wait(120) else [],),))
    check = SubmissionCheck(partial(Preflight(settings, seconds=20).start, spec()), NAMES)

    check.begin()
    assert check.refusal is None
    release.set()
    assert [warning["code"] for warning in check.warnings] == ["model_not_found"]


def test_looking_costs_little(settings):
    """In milliseconds where there is nothing to say: the files are few and what git said is remembered."""
    looking = Preflight(settings)
    seconds = []
    for _ in range(30):
        began = time.perf_counter()
        assert looking.run(spec()) == []
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.05
