"""`tuneyard data`, and a file as `--dataset` of `submit` and `plan`."""

import hashlib
import json
import os

import pytest
from typer.testing import CliRunner

import cli.__main__ as cli
from tests.client.scripted_service import Scripted, ScriptedService
from tuneyard_wire.own_data import AddedDataset, Dataset, DatasetVersion, ShownRows
from tuneyard_wire.plan import Plan

ADDED = AddedDataset.example()
STARTED = {"job_id": "17", "status": "started", "message": "Training job started"}


@pytest.fixture
def run():
    """Runs a command against a service with these answers; returns the result and what was asked."""
    services = []

    def start(arguments, *answers):
        service = ScriptedService(
            *(one if isinstance(one, Scripted) else Scripted(body=json.dumps(one)) for one in answers)
        )
        services.append(service)
        return CliRunner().invoke(cli.main, arguments, env={"TUNEYARD_URL": service.url}), service.received

    yield start
    for service in services:
        service.close()


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"messages": []}\n', encoding="utf-8")
    return path


def test_a_file_is_added_and_what_was_found_is_told(run, file):
    result, _ = run(["data", "add", str(file), "--name", "support"], ADDED)

    assert (result.exit_code, result.stdout) == (0, "support@v2\n")
    assert "1200 rows, format chat, 1 bad, 3 duplicates; columns messages" in result.stderr
    assert "1 bad: messages must be a list, got 3 (row 17)" in result.stderr
    as_json, _ = run(["data", "add", str(file), "--json"], ADDED)
    assert json.loads(as_json.stdout) == ADDED


@pytest.mark.parametrize(
    ("options", "told"),
    [(["--template", "alpaca"], "--template needs --model"), (["--model", "m", "--rows", "0"], "--rows 0 shows none")],
)
def test_options_that_would_have_no_effect_are_refused(run, options, told):
    result, asked = run(["data", "show", "support", *options])
    assert (result.exit_code, asked) == (2, [])
    assert told in result.stderr


def test_an_empty_name_is_sent_as_it_is(run, file):
    _, (asked,) = run(["data", "add", str(file), "--name", ""], ADDED)
    assert 'name="name"' in asked.body


def test_a_pipe_is_no_file(run, tmp_path):
    os.mkfifo(tmp_path / "rows.jsonl")
    result, asked = run(["data", "add", str(tmp_path / "rows.jsonl")])
    assert (result.exit_code, asked) == (2, [])
    assert "not a regular file" in result.stderr


def test_datasets_are_listed_shown_downloaded_and_deleted(run, tmp_path):
    result, _ = run(["data", "list"], [DatasetVersion.example()])
    assert [word in result.stdout for word in ("support@v2", "chat", "1200")] == [True] * 3
    result, asked = run(["data", "show", "support", "--model", "m"], Dataset.example(), ShownRows.example())
    assert "»Hello.<|im_end|>«" in result.stdout
    assert asked[1].path == "/datasets/support%40v2/rows?limit=3&model=m"
    content = Scripted(body=b"x", headers={"X-Checksum-SHA256": hashlib.sha256(b"x").hexdigest()})
    result, _ = run(["data", "download", "support", str(tmp_path / "copy.jsonl")], Dataset.example(), content)
    assert (result.exit_code, (tmp_path / "copy.jsonl").read_bytes()) == (0, b"x")
    result, asked = run(["data", "delete", "support@v2"], {"deleted": ["support@v2"]})
    assert (result.stdout, asked[0].method) == ("Deleted support@v2\n", "DELETE")


@pytest.mark.parametrize(
    ("more", "path", "body", "told"),
    [
        ([], "/train", {"model_name": "m", "dataset_version": "support@v2", "template": "auto"}, "template auto"),
        (
            ["--epochs", "1", "--template", "chatml"],
            "/train",
            {"model_name": "m", "dataset_version": "support@v2", "template": "chatml", "num_epochs": 1.0},
            "template chatml, num_epochs 1.0",
        ),
        (
            ["--set", "dataset_format=chat"],
            "/api/sft/train",
            {
                "config": {
                    "base_model": "m",
                    "dataset_name": "support@v2",
                    "dataset_format": "chat",
                    "template_name": "auto",
                }
            },
            "dataset_format chat",
        ),
    ],
)
def test_a_submission_adds_its_file_and_says_what_differs_from_the_defaults(run, file, more, path, body, told):
    result, asked = run(["submit", "--model", "m", "--dataset", str(file), *more], ADDED, STARTED)

    assert (result.exit_code, result.stdout) == (0, "17\n")
    assert [(one.method, one.path.partition("?")[0]) for one in asked] == [("POST", "/datasets"), ("POST", path)]
    assert json.loads(asked[1].body) == body
    assert f"{file} is support@v2" in result.stderr
    assert "1200 rows, format chat" in result.stderr
    line = next(line for line in result.stderr.splitlines() if line.startswith("differs from the defaults: "))
    assert told in line


def test_a_plan_adds_its_file_too(run, file):
    result, asked = run(["plan", "--model", "m", "--dataset", str(file), "--json"], ADDED, Plan.example())
    assert result.exit_code == 0
    assert json.loads(asked[1].body)["dataset_version"] == "support@v2"


def test_a_file_without_a_known_format_needs_the_name_of_its_column(run, file):
    unknown = ADDED | {"format": None, "columns": ["body"]}
    result, asked = run(["submit", "--model", "m", "--dataset", str(file)], unknown, STARTED)
    assert (result.exit_code, len(asked)) == (2, 1)
    assert "its columns are body; name the one with the text by --set dataset_text_field=COLUMN" in result.stderr
    arguments = ["submit", "--model", "m", "--dataset", str(file), "--set", "dataset_text_field=body"]
    assert run(arguments, unknown, STARTED)[0].exit_code == 0


def test_a_dataset_on_the_hub_is_named_by_its_owner_and_name(run):
    result, asked = run(["submit", "--model", "m", "--dataset", "org/rows"], STARTED)
    config = json.loads(asked[0].body)["config"]
    assert (config["dataset_name"], config["template_name"]) == ("org/rows", "auto")
    assert "template_name auto" in result.stderr


@pytest.mark.parametrize(
    ("more", "template"),
    [
        (["--dataset", "support@v1"], "auto"),
        (["--dataset", "support@v1", "--template", "qwen"], "qwen"),
        (["--dataset", "v1.1"], None),  # of the default dataset, as the API takes it
    ],
)
def test_a_version_is_trained_on_in_the_template_that_its_file_would_be(run, more, template):
    result, asked = run(["submit", "--model", "m", *more], STARTED)
    assert json.loads(asked[0].body).get("template") == template
    assert ("differs from the defaults: template auto" in result.stderr) == (template == "auto")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name a base model (--model) and a dataset (--dataset)"),
        (["--model", "m", "--dataset", "missing.jsonl"], "'missing.jsonl' is not a file here"),
    ],
)
def test_wrong_usage_asks_nothing_of_the_service(run, arguments, told):
    for command in ("submit", "plan"):
        result, asked = run([command, *arguments], STARTED)
        assert (result.exit_code, asked) == (2, [])
        assert told in result.stderr


def test_a_plan_here_needs_a_file_in_the_data_root(run, file):
    result, asked = run(["plan", "--here", "--model", "m", "--dataset", str(file)], STARTED)
    assert (result.exit_code, asked) == (2, [])
    assert "leave out --here" in result.stderr
