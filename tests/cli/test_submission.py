"""What `submit` and `plan` send, over combinations of files, options, `--set` and saved configurations."""

import json
from itertools import pairwise

import pytest
from typer.testing import CliRunner

import cli.__main__ as cli
from tests.client.scripted_service import Scripted, ScriptedService
from tuneyard_cli.job_options import flagged_fields
from tuneyard_cli.values import MAX_FILE_BYTES
from tuneyard_wire.configs import SavedConfig
from tuneyard_wire.plan import Plan

CONFIG_ID = "550e8400-e29b-41d4-a716-446655440000"
CONFIG = {"dataset_name": "alpaca@v1.0", "base_model": "b"}
SAVED = SavedConfig.example() | {"config_id": CONFIG_ID, "name": "mine", "config": CONFIG}
STARTED = {"job_id": "17", "status": "started", "message": "Training job started"}
MODEL_AND_DATA = ["--model", "m", "--dataset", "v1.1"]
IN_TRAINING_WORDS = {"model_name": "m", "dataset_version": "v1.1"}
SFT_FILE = {"base_model": "b", "dataset_name": "alpaca@v1.0", "dataset_format": "chat"}

# file, arguments, path, body
CASES = [
    (None, MODEL_AND_DATA, "/train", IN_TRAINING_WORDS),
    (None, [*MODEL_AND_DATA, "--reject"], "/train?strategy=reject", IN_TRAINING_WORDS),
    ({"model_name": "m", "dataset_version": "a@v2", "lora_r": 2}, ["--model", "n", "--set", "lora_r=3"],
     "/train", {"model_name": "n", "dataset_version": "a@v2", "lora_r": 3}),
    (None, [*MODEL_AND_DATA, "--set", "max_seq_length=9", "--set", "template_name=qwen"],
     "/train", {**IN_TRAINING_WORDS, "cutoff_len": 9, "template": "qwen"}),
    (None, [*MODEL_AND_DATA, "--name", "x", "--set", "lora_version=3", "--set", "save_name=y"],
     "/train", {**IN_TRAINING_WORDS, "lora_name": "x", "lora_version": 3, "save_name": "y"}),
    (None, [*MODEL_AND_DATA, "--no-strict"], "/train?strict=false", IN_TRAINING_WORDS),
    (SFT_FILE, [], "/api/sft/train", {"config": SFT_FILE}),
    (SFT_FILE, ["--no-strict", "--reject"], "/api/sft/train?strategy=reject&strict=false", {"config": SFT_FILE}),
    (SFT_FILE, ["--reject"], "/api/sft/train?strategy=reject", {"config": SFT_FILE}),
    ({"config": SFT_FILE, "priority": "low"}, ["--priority", "high", "--model", "n", "--cutoff-len", "9"],
     "/api/sft/train", {"config": {**SFT_FILE, "base_model": "n", "max_seq_length": 9}, "priority": "high"}),
    (SFT_FILE, ["--dataset", "v1.1"], "/api/sft/train", {"config": {**SFT_FILE, "dataset_name": "alpaca@v1.1"}}),
    (SFT_FILE, ["--dataset", "other@v3"], "/api/sft/train", {"config": {**SFT_FILE, "dataset_name": "other@v3"}}),
    (None, ["--model", "m", "--set", "dataset_name=rows.jsonl", "--name", "x", "--webhook", "http://w"],
     "/api/sft/train", {"config": {"base_model": "m", "dataset_name": "rows.jsonl", "dataset_format": "auto"},
                        "adapter_name": "x", "webhook_url": "http://w"}),
    (None, ["--model", "m", "--set", "dataset_name=[a@v1, {name: b@v2, weight: 0.5}]",
            "--set", "validation_dataset=2024"],
     "/api/sft/train", {"config": {"base_model": "m", "dataset_name": ["a@v1", {"name": "b@v2", "weight": 0.5}],
                                   "validation_dataset": "2024", "dataset_format": "auto"}}),
    (None, ["--model", "m", "--set", "dataset_version=[v1.0, {name: b@v2, weight: 2}]"],
     "/train", {"model_name": "m", "dataset_version": ["v1.0", {"name": "b@v2", "weight": 2}]}),
    (None, ["--set", "base_model=b", "--dataset", "v1.1"],
     "/api/sft/train", {"config": {"base_model": "b", "dataset_name": "handbook@v1.1", "dataset_format": "auto"}}),
    (None, ["--config", CONFIG_ID], "/api/sft/train", {"config": {}, "config_id": CONFIG_ID}),
    (None, ["--config", CONFIG_ID, "--reject", "--set", "cutoff_len=9", "--set", "lora_r=2", "--template", "qwen"],
     "/api/sft/train?strategy=reject",
     {"config": {"max_seq_length": 9, "lora_r": 2, "template_name": "qwen"}, "config_id": CONFIG_ID}),
    (None, ["--config", CONFIG_ID, "--dataset", "v1.1"],
     "/api/sft/train", {"config": {"dataset_name": "alpaca@v1.1"}, "config_id": CONFIG_ID}),
    (None, ["--config", CONFIG_ID, "--dataset", "new@v1.1"],
     "/api/sft/train", {"config": {"dataset_name": "new@v1.1"}, "config_id": CONFIG_ID}),
    ({"model_name": "m", "logging_backend": "wandb", "training_type": "sft"}, ["--config", CONFIG_ID],
     "/api/sft/train", {"config": {"base_model": "m"}, "tracking_backend": "wandb", "config_id": CONFIG_ID}),
    (None, ["--config", CONFIG_ID, "--name", "x", "--set", "lora_version=3", "--set", "save_name=y"],
     "/api/sft/train", {"config": {"adapter_path": "models:/x/3"}, "adapter_name": "y", "config_id": CONFIG_ID}),
    ({"config_id": CONFIG_ID, "config": {"seed": 1}}, ["--metadata", "a=b", "--webhook-event", "started"],
     "/api/sft/train",
     {"config": {"seed": 1}, "config_id": CONFIG_ID, "metadata": {"a": "b"}, "webhook_events": ["started"]}),
]  # fmt: skip


def with_strictness(path):
    """The path as it is asked for: `strict` unless turned off."""
    if "strict=false" in path:
        return path.replace("&strict=false", "").replace("?strict=false", "")
    return f"{path}{'&' if '?' in path else '?'}strict=true"


@pytest.fixture
def run(tmp_path):
    """Runs a command against a service that gives these answers; the result, and what the service was asked."""

    def run(arguments, *answers, file=None):
        service = ScriptedService(*(a if isinstance(a, Scripted) else Scripted(body=json.dumps(a)) for a in answers))
        if file is not None:
            (tmp_path / "job.json").write_text(json.dumps(file) if isinstance(file, dict) else file)
            arguments = [*arguments, "--file", str(tmp_path / "job.json")]
        try:
            result = CliRunner().invoke(cli.main, arguments, env={"TUNEYARD_URL": service.url})
        finally:
            service.close()
        return result, service.received

    return run


@pytest.mark.parametrize(("file", "arguments", "path", "body"), CASES)
def test_every_combination_is_sent_as_it_was_meant(run, file, arguments, path, body):
    needs_saved = "--config" in arguments and "v1.1" in arguments
    result, received = run(["submit", *arguments], *([SAVED] if needs_saved else []), STARTED, file=file)

    assert (result.exit_code, result.stdout) == (0, "17\n"), result.output
    assert (received[-1].method, received[-1].path) == ("POST", with_strictness(path))
    assert json.loads(received[-1].body) == body
    assert len(received) == 1 + needs_saved


@pytest.mark.parametrize(("file", "arguments", "path", "body"), CASES)
def test_a_plan_takes_what_a_submission_takes(run, file, arguments, path, body):
    needs_saved = "--config" in arguments and "v1.1" in arguments
    refused = Scripted(404, json.dumps({"detail": "no such model", "code": "model_not_found", "request_id": "r"}))
    result, received = run(["plan", *arguments], *([SAVED] if needs_saved else []), refused, file=file)

    assert (result.exit_code, result.stderr) == (3, "tuneyard: no such model\n")
    assert received[-1].path == path.partition("?")[0].replace("/api/sft/train", "/api/sft/plan").replace(
        "/train", "/train/plan", 0 if path.startswith("/api") else 1
    )
    assert json.loads(received[-1].body) == body


@pytest.mark.parametrize(("options", "query"), [([], ""), (["--device", "a b&c"], "?device=a+b%26c")])
@pytest.mark.parametrize(
    ("start", "path"),
    [
        (["--model", "m", "--dataset", "v1"], "/train/plan"),
        (["--model", "m", "--set", "dataset_name=a@v1", "--set", "use_qlora=true"], "/api/sft/plan"),
    ],
)
def test_a_plan_asks_for_its_device(run, options, query, start, path):
    refused = Scripted(404, json.dumps({"detail": "no such device", "code": "device_not_found", "request_id": "r"}))
    result, received = run(["plan", *start, *options], refused)

    assert (result.exit_code, result.stderr) == (3, "tuneyard: no such device\n")
    assert received[-1].path.replace("%20", "+") == path + query


def test_plan_and_submit_have_the_same_options():
    def options(name):
        command = cli.typer.main.get_command(cli.main).commands[name]
        return {option for parameter in command.params for option in parameter.opts}

    assert options("plan") - options("submit") == {"--here", "--device"}
    assert options("submit") - options("plan") == set()
    flags = {one.option for one in flagged_fields()}
    assert len(flags) > 10
    assert flags < options("submit")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("weight_decay=1e-3", 1e-3),
        ("weight_decay=1E-3", 1e-3),
        ("weight_decay=.5", 0.5),
        ("weight_decay=-1.e+2", -100.0),
        ("max_steps=010", 10),
        ("max_steps=0x10", 16),
        ("max_steps=null", None),
        ("max_steps=~", None),
        ("max_steps=", None),
        ("packing=true", True),
        ("packing=False", False),
        ("packing=no", "no"),
        ("lora_target_modules=[q_proj, v_proj]", ["q_proj", "v_proj"]),
        ('lora_target_modules=["q_proj"]', ["q_proj"]),
        ("metadata={a: b}", {"a": "b"}),
        ("run_name=2026-01-02", "2026-01-02"),
        ("run_name=12:30", "12:30"),
        ("run_name=1e3", "1e3"),
        ("run_name=no", "no"),
        ("run_name=[x]", "[x]"),
        ("run_name= a = b ", " a = b "),
        ("run_name=@b", "@b"),
        ("run_name=a: b: c", "a: b: c"),
        ("run_name='x", "'x"),
        ("run_name=null", None),
        ("run_name=", None),
        ("lora_version=7", 7),
        ("lora_version=latest", "latest"),
        ("gradient_checkpointing=auto", "auto"),
        ("learning_rate=2e-5", 2e-5),
    ],
)
def test_values_of_set_are_yaml_scalars_lists_and_mappings_but_text_stays_text(run, text, value):
    result, (request,) = run(["submit", *MODEL_AND_DATA, "--set", text], STARTED)

    assert result.exit_code == 0, result.output
    assert json.loads(request.body)[text.partition("=")[0]] == value


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name a base model (--model) and a dataset (--dataset), in a --file, or by a saved --config"),
        (["--model", "m"], "name a dataset (--dataset)"),
        (["--dataset", "v1.1"], "name a base model (--model)"),
        (["--set", "base_model=b"], "name a dataset (--dataset)"),
        ([*MODEL_AND_DATA, "--set", "lora_rank=3"], "lora_rank is not a known field; did you mean lora_r?"),
        ([*MODEL_AND_DATA, "--set", "zzz=3"], "zzz is not a known field"),
        ([*MODEL_AND_DATA, "--set", "x"], "--set 'x' must be KEY=VALUE"),
        ([*MODEL_AND_DATA, "--set", "=x"], "--set '=x' must be KEY=VALUE"),
        ([*MODEL_AND_DATA, "--metadata", "x"], "--metadata 'x' must be KEY=VALUE"),
        ([*MODEL_AND_DATA, "--set", "lora_target_modules=[a"], "--set lora_target_modules: not valid YAML"),
        ([*MODEL_AND_DATA, "--set", "seed=.nan"], "seed must be a JSON value, got nan"),
        ([*MODEL_AND_DATA, "--set", "seed=!!timestamp 2026-01-02"], "seed must be a JSON value"),
        ([*MODEL_AND_DATA, "--set", "metadata={a: 1, a: 2}"], "'a' is given twice"),
        ([*MODEL_AND_DATA, "--learning-rate", "inf"], "learning_rate must be a JSON value, got inf"),
        ([*MODEL_AND_DATA, "--set", "seed=1" + "0" * 5000], "--set seed: not valid YAML"),
        ([*MODEL_AND_DATA, "--set", "config=7"], "config must hold the fields of a configuration, got 7"),
        (["--model", "m", "--dataset", "rows.jsonl"], "use --set dataset_name=rows.jsonl"),
        ([*MODEL_AND_DATA, "--set", "template=a", "--set", "template_name=b"], "two names of the same field"),
        (["--config", CONFIG_ID, "--set", "lora_version=3"], "lora_version needs lora_name (--name)"),
        (["--config", CONFIG_ID, "--set", "training_type=dpo"], "training_type must be 'sft', got 'dpo'"),
        ([*MODEL_AND_DATA, "--priority", "urgent"], "'urgent' is not one of"),
        ([*MODEL_AND_DATA, "--epochs", "many"], "'--epochs'"),
        (["-f", "/nowhere"], "does not exist"),
        (["--nonsense"], "No such option: --nonsense"),
    ],
)
def test_wrong_usage_asks_nothing_of_the_service(arguments, told):
    nobody = {"TUNEYARD_URL": "http://127.0.0.1:9"}  # to ask would be another exit code
    for command in ("submit", "plan"):
        result = CliRunner().invoke(cli.main, [command, *arguments], env=nobody)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("tuneyard: ")
        assert told in result.stderr
        in_json = CliRunner().invoke(cli.main, [command, *arguments, "--json"], env=nobody)
        error = json.loads(in_json.stderr)
        assert (in_json.exit_code, in_json.stdout, error["code"]) == (2, "", "usage")
        assert told in error["detail"]


ALIASES = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(8 * ['*' + before])}]\n" for before, name in pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("- 1\n", "must hold a mapping of fields, got list"),
        ("a: [", "is not valid YAML"),
        ("seed: 1\nseed: 2\n", "'seed' is given twice"),
        ("1: 2\n", "must hold a mapping of fields"),
        ("model_name: m\ndataset_version: v1\nwarmup_steps: 3\n", "warmup_steps is not a known field; did you mean"),
        ("config: [1]\n", "config must hold the fields of a configuration, got [1]"),
        ("config: {seed: 1}\nseed: 2\n", "seed is given in config and beside it"),
        ("template: a\ntemplate_name: b\n", "template and template_name are two names of the same field"),
        ("seed: .inf\n", "seed must be a JSON value"),
        ("a: &a [*a]\n", "is not valid YAML"),
        ("", "must hold a mapping of fields, got nothing"),
        ("1: 2\n", "got 1 for a field's name"),
        ("'': 2\n", "'' is not a known field"),
        (f"seed: {'9' * 5000}\n", "has more digits than can be read"),
        (f"seed: 0x{'f' * 5000}\n", "has more digits than can be read"),
        ('run_name: "\\ud83d"\n', "holds half a character"),
        (ALIASES, "it holds more than 100000 values, including those that aliases stand for"),
        ("#" * (MAX_FILE_BYTES + 1), "has more than 1048576 bytes; no job is as large"),
        ("base_model: m\ndataset_version: ' '\n", "dataset_version (--dataset) must not be blank"),
        ("config_id: 3\n", "config_id must be the id or the name of a saved configuration, as text, got 3"),
        ("base_model: m\nlora_name: a\nlora_version: [3]\n", "lora_version must be a version or an alias, got [3]"),
    ],
)
def test_a_file_that_can_not_be_meant_is_wrong_usage(tmp_path, file, told):
    (tmp_path / "job.yaml").write_text(file)
    result = CliRunner().invoke(cli.main, ["submit", "-f", str(tmp_path / "job.yaml"), "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 2
    assert told in result.stderr


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "job.yaml").write_bytes("model_name: ü".encode("utf-16"))
    result = CliRunner().invoke(cli.main, ["submit", "-f", str(tmp_path / "job.yaml")])
    assert result.exit_code == 2
    assert "job.yaml cannot be read as UTF-8 text" in result.stderr


def test_a_file_is_read_as_json_writes_it(run):
    _, (request,) = run(["submit"], STARTED, file=json.dumps(SFT_FILE | {"run_name": "🚀", "config_id": None}))
    assert json.loads(request.body) == {"config": SFT_FILE | {"run_name": "🚀"}}


def test_text_that_is_not_utf_8_is_named():
    for arguments in (["--model", "m\udcff"], ["--metadata", "a\udcff=b"], ["--set", "run_name=\udcff"]):
        result = CliRunner().invoke(cli.main, ["submit", "--dataset", "d@v1", "--model", "m", *arguments])
        assert result.exit_code == 2
        assert "dcff" in result.stderr


def test_numbers_of_a_file_are_read_as_json_reads_them(run):
    file = "model_name: m1e4\ndataset_version: v1\nlearning_rate: 2e-5\nlora_name: 1e4\nrun_name: '1e4'\n"
    _, (request,) = run(["submit", "--set", "weight_decay=1E-4"], STARTED, file=file)

    assert json.loads(request.body) == {
        "model_name": "m1e4", "dataset_version": "v1", "learning_rate": 2e-5, "lora_name": 1e4, "run_name": "1e4",
        "weight_decay": 1e-4,
    }  # fmt: skip


def test_a_configuration_is_named_by_its_name_or_by_how_its_id_begins(run):
    result, received = run(["submit", "--config", "mine"], [SAVED], STARTED)
    assert (result.exit_code, json.loads(received[-1].body)["config_id"]) == (0, CONFIG_ID)
    assert [request.path for request in received] == ["/api/sft/configs?name=mine", "/api/sft/train?strict=true"]

    result, received = run(["submit", "--config", "550e"], [], [SAVED], STARTED)
    assert (result.exit_code, json.loads(received[-1].body)["config_id"]) == (0, CONFIG_ID)
    assert [request.path for request in received][1] == "/api/sft/configs?id_prefix=550e"

    result, received = run(["submit", "--config", "nobodys"], [], STARTED)
    assert (result.exit_code, len(received)) == (3, 1)
    assert "No saved configuration has the name or id prefix nobodys" in result.stderr

    twin = {**SAVED, "config_id": "550e8400-0000-41d4-a716-446655440000"}
    result, received = run(["submit", "--config", "mine"], [SAVED, twin], STARTED)
    assert (result.exit_code, len(received)) == (2, 1)
    assert result.stderr.splitlines() == [
        "tuneyard: mine matches 2 configurations; give more of the id:",
        f"  {CONFIG_ID}  mine",
        f"  {twin['config_id']}  mine",
    ]


def test_a_plan_shows_each_dataset_of_several_in_lines_of_its_own(run):
    train, evaluated = (Plan.example()["rows"][split] for split in ("train", "eval"))
    part = {"label": "a", "first_row": 1, "weight": 0.5, "train": train, "eval": None, "repeated": 0, "left_out": 3}
    held = part | {"name": "held", "weight": None, "train": None, "eval": evaluated, "taken": None}
    plan = Plan.example() | {"sources": [part | {"name": "a\n! faked\x1b[2J", "taken": 9}, held]}
    result, _ = run(["plan", *MODEL_AND_DATA], plan)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert f"9 of {train['used']} rows an epoch (weight 0.5), 3 left out" in result.output
    assert f"  held: {evaluated['used']} held out" in lines
    assert not [line for line in lines if line.startswith("! faked")]
    assert "\x1b" not in result.output
