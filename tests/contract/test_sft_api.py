"""docs/contract/sft-api.md: every endpoint called as it is written there, and its Python as one plain script."""

import json
import subprocess
import sys
from datetime import datetime

import pytest

from jobs.service.job_service import JobService
from sft.config import SFTConfig
from tests.contract.documents import documented_keys, find_example, find_json, read_blocks

pytestmark = [pytest.mark.stack, pytest.mark.timeout(300)]

DOCUMENT = "sft-api.md"
NOBODY = "550e8400-e29b-41d4-a716-446655440000"


@pytest.fixture
def config():
    """The documented configuration."""
    return find_json(DOCUMENT, "Config Example")


@pytest.fixture
def ask(client, config):
    """Calls the endpoint under a heading; the answer, once it has the documented keys."""

    def run(heading, **names):
        example = find_example(DOCUMENT, heading)
        body = None
        if example.body:
            filled = example.body.replace("{...}", json.dumps(config)).replace('"..."', json.dumps(names.get("name")))
            body = json.loads(filled)
        answer = client.request(example.method, example.path.format(**names), json=body)
        if answer.is_success:
            content = answer.json()
            shown = content[0] if isinstance(content, list) else content
            assert documented_keys(example.answer) <= set(shown)
        return answer

    return run


def test_every_endpoint_of_the_document_is_called_here():
    headings = {block.heading for block in read_blocks(DOCUMENT) if block.language == "bash"}
    assert headings == {
        "Start Training", "Get Job Status", "List Jobs", "Stop Job", "Save Config", "List Configs", "Get Config",
        "Testing",
    }  # fmt: skip


def test_a_job_from_start_to_stop(ask, config):
    started = ask("Start Training")
    job_id = started.json()["job_id"]
    assert (started.status_code, started.json()["status"]) == (200, "running")

    status = ask("Get Job Status", job_id=job_id).json()
    assert (status["job_id"], status["status"]) == (job_id, "running")
    assert datetime.fromisoformat(status["created_at"]).tzinfo is not None
    assert SFTConfig.from_dict(status["config"]) == SFTConfig.from_dict(config)
    assert job_id in [job["job_id"] for job in ask("List Jobs").json()["jobs"]]

    assert ask("Stop Job", job_id=job_id).json() == {"message": f"Job {job_id} stopped"}
    assert ask("Get Job Status", job_id=job_id).json()["status"] == "stopped"


def test_a_saved_configuration(ask, config):
    saved = ask("Save Config", name="mine").json()
    assert saved["name"] == "mine"

    found = ask("Get Config", config_id=saved["config_id"]).json()
    assert (found["name"], found["config"]) == ("mine", config)
    assert found in ask("List Configs").json()


def test_error_codes(ask, client, config):
    refused = client.post("/api/sft/train", json={"config": config | {"lora_r": 0}})
    assert refused.status_code == 400
    assert "lora_r" in refused.json()["detail"]
    for heading in ("Get Job Status", "Stop Job"):
        assert ask(heading, job_id=NOBODY).status_code == 404
        assert ask(heading, job_id="nonsense").status_code == 404
    assert ask("Get Config", config_id=NOBODY).status_code == 404


def test_the_python_of_the_document_runs_as_one_plain_script(workers, environment, stack, tmp_path):
    blocks = [block for block in read_blocks(DOCUMENT) if block.language == "python"]
    assert len(blocks) == 4
    script = tmp_path / "script.py"
    script.write_text("\n".join(block.text for block in blocks) + "\nprint(job_id, config_id)\n")

    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    first, *listed, last = done.stdout.splitlines()
    job_id, config_id = last.split()
    service = JobService(stack)
    try:
        assert first == "Status: running"
        assert f"{job_id}: running" in listed
        assert service.get(job_id).spec.config.max_steps == 100
        assert service.configs.get(config_id).config["use_lora"] is True
    finally:
        service.cancel(job_id)
        service.close()
