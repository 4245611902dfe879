"""`tuneyard` against the service itself."""

import json
import time
from uuid import uuid4

import pytest
import yaml
from typer.testing import CliRunner

import cli.__main__ as cli
from jobs.clients.keys import keys_marker
from jobs.stack.database_urls import sibling_url
from jobs.stack.postgres import ensure_databases
from jobs.storage.tables import engine_for, migrate
from tests.conftest import wait_until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]

FLAGS = ["--template", "chatml", "--max-samples", "8", "--max-steps", "1", "--name", "by-hand", "--metadata", "by=hand"]


@pytest.fixture(scope="module")
def run(api, stack):
    """Runs `tuneyard` with these arguments; what it printed, once its exit code is as expected."""

    def run(*arguments, code=0, url=str(api.base_url), **environment):
        given = {"TUNEYARD_URL": url, "TUNEYARD_HOME": str(stack.home), **environment}
        result = CliRunner().invoke(cli.main, arguments, env=given)
        assert result.exit_code == code, result.output
        return result.stdout if code == 0 else result.stderr

    return run


@pytest.fixture(scope="module")
def submitted(run, model):
    """The id of a job that was submitted by flags and watched to its end, and what was shown of it."""
    shown = run("submit", "--model", model, "--dataset", "v1.1", *FLAGS, "--set", "lora_r=4", "--watch")
    return shown.split()[0], shown


def test_a_job_by_flags_is_watched_to_its_end(run, submitted):
    job_id, shown = submitted
    phases = [line.removeprefix("• ") for line in shown.splitlines() if line.startswith("• ")]

    assert phases[-1] == "done"
    assert "step 1 of 1" in shown
    job = json.loads(run("show", job_id, "--json"))
    assert (job["status"], job["config"]["lora_r"], job["metadata"]) == ("completed", 4, {"by": "hand"})
    assert shown.splitlines()[-1] == f"completed: {job['output_path']}"
    said = {name: value for name, value in job["result"].items() if value is not None}
    checked = said.pop("serving_check")
    printed = yaml.safe_load(run("show", job_id))["result"]
    assert printed.pop("serving_check") == f"{checked['status']}; {checked['reason']}"
    assert printed == said
    assert run("watch", job_id).splitlines()[-1] == shown.splitlines()[-1]


def test_it_is_listed_its_log_printed_and_its_adapter_downloaded(run, submitted, tmp_path):
    job_id, _ = submitted

    header, line = run("list", "--adapter", "by-hand").splitlines()
    assert header.split()[0] == "ID"
    assert line.split()[:2] == [job_id, "completed"]
    assert [job["job_id"] for job in json.loads(run("list", "--metadata", "by=hand", "--json"))] == [job_id]
    wait_until(lambda: "rows used" in run("logs", job_id), 30)  # lines are sent in batches
    assert len(run("logs", job_id, "--tail", "2").splitlines()) == 2
    assert run("download", job_id, str(tmp_path / "adapter")).split() == [str(tmp_path / "adapter")]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert "is not empty; choose another folder" in run("download", job_id, str(tmp_path / "adapter"), code=2)


def test_a_job_from_a_file_is_cancelled(run, model, tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text(f"model_name: {model}\ndataset_version: v1.1\ntemplate: chatml\nmetadata: {{by: file}}\n")
    submitted = json.loads(run("submit", "--file", str(file), "--epochs", "2000", "--json"))
    job_id = submitted["job_id"]

    assert "training job is already running" in run("submit", "--file", str(file), "--reject", code=3)
    assert run("cancel", job_id) == f"Training job {job_id} cancelled\n"
    job = json.loads(run("show", job_id, "--json"))
    assert (job["status"], job["config"]["num_epochs"], job["metadata"]) == ("cancelled", 2000.0, {"by": "file"})
    assert run("watch", job_id, code=1) == f"tuneyard: job {job_id} cancelled\n"


def test_a_configuration_is_saved_changed_used_and_deleted(run, model, tmp_path):
    file = tmp_path / "config.yaml"
    lasting = "template_name: chatml\nnum_epochs: 2000\n"  # it does not end before it is cancelled
    file.write_text(f"base_model: {model}\ndataset_name: handbook@v1.0\ndataset_format: auto\n{lasting}")
    config_id = run("configs", "save", "by-hand", str(file)).strip()
    file.write_text(file.read_text() + "lora_r: 4\n")

    assert run("configs", "update", config_id, str(file)) == f"{config_id} is now at version 2\n"
    assert f"{config_id}  by-hand" in run("configs", "list").splitlines()
    assert [one["version"] for one in json.loads(run("configs", "show", config_id, "--versions", "--json"))] == [1, 2]
    job_id = run("submit", "--config", "by-hand", "--set", "lora_alpha=9", "--dataset", "v1.1").strip()
    config = json.loads(run("show", job_id[:20], "--json"))["config"]
    assert (config["lora_r"], config["lora_alpha"], config["dataset_version"]) == (4, 9, "v1.1")
    assert "training job is already running" in run("submit", "--config", config_id[:13], "--reject", code=3)
    run("cancel", job_id[:20])
    assert run("configs", "delete", config_id[:13]) == f"Deleted {config_id}\n"
    assert run("configs", "show", config_id, code=3) == f"tuneyard: Config {config_id} not found\n"


@pytest.fixture
def keys_are_forgotten(stack):
    """That keys were in use is not held against the other tests of the shared state folder."""
    yield
    keys_marker(stack.home).unlink(missing_ok=True)


@pytest.mark.usefixtures("keys_are_forgotten")
def test_with_the_first_key_the_service_asks_everybody_for_one(run, model, make_api, stack):
    name = f"keys_{uuid4().hex}"
    ensure_databases(stack.database_url, [name])
    database = {"TUNEYARD_DATABASE_URL": sibling_url(stack.database_url, name)}
    migrate(database["TUNEYARD_DATABASE_URL"])
    url = str(make_api(**database).start().client.base_url)
    run("list", url=url)

    reader = run("keys", "create", "board", "--scope", "read", **database).strip()
    writer = run("keys", "create", "ci", **database).strip()
    time.sleep(3.1)  # for so long the service goes by the keys it has read
    assert "An API key is required" in run("list", url=url, code=3)
    run("list", url=url, TUNEYARD_API_KEY=reader)
    job = ("submit", "--model", "nobody/keys", "--dataset", "v1.0")
    refused = run(*job, url=url, code=3, TUNEYARD_API_KEY=reader)
    assert refused == "tuneyard: This API key has scope read; POST needs submit\n"
    job_id = run(*job, "--no-strict", url=url, TUNEYARD_API_KEY=writer).strip()
    run("cancel", job_id, url=url, TUNEYARD_API_KEY=writer)

    ids = {line.split()[-1]: line.split()[0] for line in run("keys", "list", **database).splitlines()}
    run("keys", "revoke", ids["ci"], **database)
    time.sleep(3.1)
    assert "is unknown or revoked" in run("list", url=url, code=3, TUNEYARD_API_KEY=writer)
    run("list", url=url, TUNEYARD_API_KEY=reader)
    engine_for(database["TUNEYARD_DATABASE_URL"]).dispose()


def test_the_doctor_finds_this_machine_and_its_stack_fit(run, api):
    wait_until(lambda: api.get("/ready").is_success, 90)  # a test before may have ended a part of it
    port = str(api.base_url.port)
    findings = run("doctor", TUNEYARD_API_PORT=port).splitlines()

    assert findings[-1] == "Jobs can run on this machine."
    assert f"ok    ports     the API runs on port {port}" in findings
    stack = [line for line in findings if line.split()[1:2] == ["stack"]]
    assert [(line.split()[0], line.split()[2]) for line in stack] == [
        ("ok", "database"), ("ok", "prefect"), ("ok", "mlflow"), ("ok", "worker"), ("ok", "work_pool"),
        ("ok", "watchdog"),
    ]  # fmt: skip
