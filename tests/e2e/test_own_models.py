"""A base model in a folder of any place: named by `--model`, added by `tuneyard models`, trained."""

import json
import shutil
from uuid import uuid4

import pytest
from typer.testing import CliRunner

import cli.__main__ as cli
from jobs.base_models.uploads import UPLOADS
from tests.model_files import read_files, write_model
from tests.tiny_models import save_tiny_llama

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

FLAGS = ["--dataset", "v1.1", "--template", "auto", "--max-samples", "8", "--max-steps", "1"]


@pytest.fixture(scope="module")
def run(api, stack):
    """Runs `tuneyard` with these arguments; what it printed on stdout and stderr, once its code is as expected."""

    def run(*arguments, code=0, **environment):
        given = {"TUNEYARD_URL": str(api.base_url), "TUNEYARD_HOME": str(stack.home), **environment}
        result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments], env=given)
        assert result.exit_code == code, result.output
        return result.stdout, result.stderr

    return run


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """The environment of another machine: it has a model root of its own."""
    return {"TUNEYARD_HOME": str(tmp_path_factory.mktemp("elsewhere"))}


def test_a_job_names_the_folder_of_its_model(run, stack, tmp_path):
    folder = save_tiny_llama(tmp_path / "my tiny base")
    (folder / "optimizer.pt").write_bytes(b"0")
    said, told = run("submit", "--model", folder, *FLAGS, "--watch")
    assert told.splitlines()[:2] == [
        f"base model local/my-tiny-base: copied from {folder} (0 MB)",
        "  left out, as training does not read it: optimizer.pt",
    ]
    job = json.loads(run("show", said.split()[0], "--json")[0])
    assert (job["status"], job["config"]["model_name"]) == ("completed", "local/my-tiny-base")
    (folder / "optimizer.pt").unlink()
    assert read_files(stack.model_root / "local/my-tiny-base") == read_files(folder)

    _, told = run("plan", "--model", folder, *FLAGS)
    assert told == f"base model local/my-tiny-base: added before, from {folder}\n"


def test_a_model_is_uploaded_from_another_machine_and_trained(run, stack, elsewhere, tmp_path, monkeypatch):
    folder = save_tiny_llama(tmp_path / "sent")
    monkeypatch.chdir(tmp_path)
    name = f"acme/{uuid4().hex[:8]}"
    said, told = run("models", "add", "sent", "--name", name, **elsewhere)
    assert (said, told) == (f"{name}\n", f"base model {name}: uploaded from sent (0 MB)\n")
    assert run("models", "add", folder, "--name", name, **elsewhere)[1].startswith(
        f"base model {name}: uploaded before"
    )
    assert read_files(stack.model_root / name) == read_files(folder)
    left = [path for path in (stack.model_root / UPLOADS).glob("*/upload.json") if name in path.read_text()]
    assert left == []

    said, told = run("submit", "--model", name, *FLAGS, "--watch", **elsewhere)
    assert "base model" not in told
    assert said.splitlines()[-1].startswith("completed: ")


def test_the_name_of_a_folder_is_another_one_if_other_content_has_it(run, elsewhere, tmp_path):
    first = write_model(tmp_path / "a/base-x")
    other = write_model(tmp_path / "b/base-x", numbers=7)
    plain, _ = run("models", "add", first, **elsewhere)
    assert plain == "local/base-x\n"
    suffixed, _ = run("models", "add", other, **elsewhere)
    assert suffixed.startswith("local/base-x-")
    assert run("models", "add", other, **elsewhere)[0] == suffixed
    assert run("models", "add", first, **elsewhere)[0] == plain
    assert "another base model local/base-x" in run("models", "add", other, "--name", "base-x", code=3, **elsewhere)[1]


def test_models_are_listed_shown_and_deleted(run, tmp_path):
    run("models", "add", write_model(tmp_path / "listed", shards=2, template=False))
    header, *lines = run("models", "list")[0].splitlines()
    assert header.split()[:2] == ["NAME", "ARCHITECTURE"]
    (line,) = [line for line in lines if line.startswith("local/listed ")]
    assert line.split() == ["local/listed", "LlamaForCausalLM", "2e-06", "B", "BF16", "512", "0.00"]
    assert "parameters: 2000\n" in run("models", "show", "local/listed")[0]
    assert json.loads(run("models", "list", "--json")[0])[0].keys() >= {"name", "problem", "path"}
    assert run("models", "delete", "local/listed")[0] == "Deleted local/listed\n"
    assert "no base model 'local/listed'" in run("models", "show", "local/listed", code=3)[1]


def test_a_folder_in_an_allowed_root_is_linked(run, make_api, stack, tmp_path):
    folder = write_model(tmp_path / "linked")
    allowed = {"TUNEYARD_ALLOWED_MODEL_ROOTS": json.dumps([str(tmp_path)])}
    url = {"TUNEYARD_URL": str(make_api(**allowed).start().client.base_url)}
    name, told = run("models", "add", folder, **allowed, **url)
    assert (name, told) == (
        "local/linked\n",
        f"base model local/linked: refers to {folder}; changes there change the model (--copy copies it)\n",
    )
    assert (stack.model_root / "local/linked").is_symlink()
    shutil.rmtree(folder)
    assert "no base model" in run("models", "show", "local/linked", code=3, **url)[1]
    assert "local/linked" not in run("models", "list", **url)[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("models", "add", "/nowhere/at-all"), "is not a folder"),
        (("models", "add", "/"), "has no config.json"),
        (("models", "add", "/", "--copy", "--link"), "exclude each other"),
        (("submit", "--model", "./nothing-here", *FLAGS), "is not a folder"),
        (("submit", "--model", "~/nothing-here", *FLAGS), "is not a folder"),
    ],
)
def test_what_is_no_model_is_wrong_usage(run, arguments, told):
    assert told in run(*arguments, code=2)[1]


def test_without_a_service_a_model_is_added_here(run, tmp_path):
    folder = write_model(tmp_path / "base")
    home = {"TUNEYARD_HOME": str(tmp_path / "home"), "TUNEYARD_URL": "http://127.0.0.1:9"}
    assert run("models", "add", folder, "--here", "--name", "mine", **home)[0] == "local/mine\n"
    assert read_files(tmp_path / "home/models/local/mine") == read_files(folder)
    inside = tmp_path / "home/models/local/mine"
    assert "added before" in run("models", "add", inside, "--here", **home)[1]
    assert (
        "needs the service on this machine"
        in run("models", "add", folder, "--copy", code=2, TUNEYARD_HOME=str(tmp_path / "other"))[1]
    )
