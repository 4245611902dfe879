"""`tuneyard models add` on this machine: the name that is asked for, and no file that is not the model's."""

import json

import pytest
from typer.testing import CliRunner

import cli.__main__ as cli
from tests.client.scripted_service import Scripted, ScriptedService
from tests.model_files import read_files, write_model

ADAPTER = {"id": "mine@2", "object": "model", "created": 1, "owned_by": "tuneyard", "parent": None}


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def run(home):
    def run(*arguments, **environment):
        given = {"TUNEYARD_HOME": str(home), **environment}
        return CliRunner().invoke(cli.main, [str(argument) for argument in arguments], env=given)

    return run


def test_a_folder_in_the_model_root_has_one_name(run, home, tmp_path):
    assert run("models", "add", write_model(tmp_path / "base"), "--name", "x/first", "--here").exit_code == 0
    inside = home / "models/x/first"
    for again in (run("models", "add", inside, "--here"), run("models", "add", inside, "--here", "--name", "x/first")):
        assert (again.exit_code, again.stdout) == (0, "x/first\n")
    other = run("models", "add", inside, "--here", "--name", "x/copy2")
    assert (other.exit_code, other.stdout) == (3, "")
    assert "is in the model root already, as x/first; use that name" in other.stderr
    assert "got 'x/copy2'" in other.stderr
    assert [path.name for path in (home / "models/x").iterdir()] == ["first"]


@pytest.mark.parametrize("options", [["--here"], []])
def test_a_folder_with_another_thing_is_told_as_what_it_is(run, home, tmp_path, options):
    empty, adapter, file = tmp_path / "empty", tmp_path / "adapter", tmp_path / "file"
    for folder in (empty, adapter):
        folder.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    file.write_text("")
    told = {
        empty: "has no config.json; name the folder of a model",
        adapter: "has an adapter (adapter_config.json), not a base model; add the model it was made of",
        file: "is not a folder",
    }
    for folder, words in told.items():
        refused = run("models", "add", folder, *options)
        assert refused.exit_code == 2
        assert words in refused.stderr
    assert not (home / "models").exists()


@pytest.mark.parametrize("name", ["", "a/b/c", "a b", "local/", ".hidden"])
def test_a_name_that_can_not_be_used_is_refused_before_the_folder_is_read(run, home, tmp_path, name):
    refused = run("models", "add", write_model(tmp_path / "base"), "--here", "--name", name)
    assert refused.exit_code == 2
    assert "--name must be ORG/NAME" in refused.stderr
    assert f"got {name!r}" in refused.stderr
    assert not (home / "models").exists()


def test_a_file_that_a_link_takes_from_elsewhere_is_neither_copied_nor_sent(run, home, tmp_path):
    secret = tmp_path / "id_ed25519"
    secret.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    folder = write_model(tmp_path / "base")
    (folder / "README.md").symlink_to(secret)
    here = run("models", "add", folder, "--here")
    service = ScriptedService(Scripted(body=json.dumps({"models": [], "root_id": None})))
    try:
        sent = run("models", "add", folder, TUNEYARD_URL=service.url)
    finally:
        service.close()
    for refused in (here, sent):
        assert refused.exit_code in (2, 3)
        assert f"README.md is a link to {secret}, which is not in the folder" in refused.stderr
    assert [request.path for request in service.received] == ["/models"]
    assert not (home / "models/local").exists()


def test_a_snapshot_of_the_hubs_cache_is_copied_with_the_files_that_its_links_name(run, home, tmp_path):
    cached = tmp_path / "hub/models--acme--base"
    snapshot, blobs = cached / "snapshots/0123abc", cached / "blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(write_model(snapshot, shards=2).iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")
    assert run("models", "add", snapshot, "--here", "--name", "acme/base").exit_code == 0
    added = home / "models/acme/base"
    assert read_files(added) == read_files(snapshot)
    assert not any(path.is_symlink() for path in added.iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["list", "--url", ""], "'' is not a URL"),
        (["models", "list", "--url", ""], "'' is not a URL"),
        (["data", "list", "--url", ""], "'' is not a URL"),
        (["deliveries", "0" * 32, "--resend", ""], "No delivery id"),
        (["models", "add", ""], "'FOLDER': it is empty"),
        (["download", "x", ""], "'FOLDER': it is empty"),
        (["data", "download", "x", ""], "'FILE': it is empty"),
        (["export", "x", "--to", "peft", "--out", ""], "'--out': it is empty"),
        (["export", "x", "--to", "gguf", "--llama-cpp", ""], "'--llama-cpp': it is empty"),
    ],
)
def test_an_empty_option_is_not_an_absent_one(run, arguments, told):
    job_id = "00000000-0000-4000-8000-000000000000"
    service = ScriptedService(*[Scripted(body="[]")] * 2)
    try:
        refused = run(*[job_id if one == "0" * 32 else one for one in arguments], TUNEYARD_URL=service.url)
    finally:
        service.close()
    assert refused.exit_code in (2, 3)
    assert told in refused.stderr


def test_an_empty_name_of_a_configuration_is_sent_and_not_the_one_before(run, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("epochs: 1\n")
    problem = {"detail": "name must not be empty", "code": "invalid_request", "request_id": "1"}
    service = ScriptedService(Scripted(422, json.dumps(problem)))
    config_id = "00000000-0000-4000-8000-000000000000"
    try:
        run("configs", "update", config_id, file, "--name", "", TUNEYARD_URL=service.url)
    finally:
        service.close()
    (request,) = service.received
    assert (request.method, json.loads(request.body)["name"]) == ("PUT", "")
