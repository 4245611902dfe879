"""An option of the job and one of the engine, added to a copy of the code as docs/how-to/add-an-option.md says."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.project import PROJECT_ROOT

PACKAGES = (
    *("api", "cli", "flows", "jobs", "sft", "tasks"),
    *("tuneyard_cli", "tuneyard_client", "tuneyard_wire"),
)
# File, a line of it, and what is put before that line; with the file where it is used that makes three.
JOB_OPTION = (
    (
        "jobs/spec.py",
        "    metadata: Metadata | None",
        '    ticket: str | None = Field(None, max_length=9, description="T.")\n',
    ),
    ("tuneyard_wire/fields.py", "    priority: Annotated", '    ticket: Annotated[str | None, Flag("Of whom.")]\n'),
)
ENGINE_OPTION = (
    ("sft/config.py", "    seed: int = ", '    momentum: float = Field(0.9, ge=0, lt=1, description="M.")\n'),
    ("tuneyard_wire/fields.py", "    seed: int", '    momentum: Annotated[float, Flag("How much.")]\n'),
)
SCRIPT = """
import json, os, sys
from api.main import create_app
from api.sft_request import TrainBody
from api.training_request import TrainingRequest, config_view
from tuneyard_cli.job_options import JobArguments, takes_job_options
from tuneyard_cli.submission import build_submission, read_settings
from typer import Typer
from typer.testing import CliRunner
from flows import finetune as module
from jobs.settings import Settings
from jobs.spec import read_spec
from prefect.utilities.callables import get_call_parameters, parameter_schema
from tuneyard_client import calls

GIVEN = {"ticket": "T-1", "momentum": 0.5}
named = {"base_model": "m", "dataset_name": "d@v1", "dataset_format": "chat", "momentum": 0.5}
ticket = {"ticket": "T-1"}
written = read_settings({"ticket": "T-1", "momentum": "0.5"})
by_words = build_submission({"model_name": "m", "dataset_version": "d@v1"}, {}, written)
by_config = build_submission({"base_model": "m", "dataset_name": "d@v1"}, {}, written)
by_flags = []
app = Typer()
app.command()(takes_job_options(lambda job: by_flags.append(job.build())))
options = ["--model", "m", "--dataset", "d@v1", "--ticket", "T-1", "--momentum", "0.5"]
assert CliRunner().invoke(app, options).exit_code == 0
training = [GIVEN, dict(by_words.fields), dict(by_flags[0].fields), calls.submit({"model_name": "m", **GIVEN}).body]
sft = [
    {"config": named, **ticket},
    {"config": dict(by_config.fields), **by_config.options},
    calls.sft(named, **ticket).body,
]
specs = [TrainingRequest.model_validate(body).to_spec("handbook") for body in training]
specs += [TrainBody.model_validate(body).to_spec(None) for body in sft]
seen = []
for spec in specs:
    parameters = json.loads(json.dumps(spec.to_parameters()))
    bound = get_call_parameters(module.finetune.fn, (), parameters)
    def stop(settings, run_id, spec):
        seen.append([spec.ticket, spec.config.momentum])
        raise InterruptedError
    module.open_journal = stop
    try:
        module.finetune.fn(**bound)
    except InterruptedError:
        pass
old = {name: value for name, value in specs[0].to_parameters().items() if name != "ticket"}
schemas = create_app(Settings()).openapi()["components"]["schemas"]
form = parameter_schema(module.finetune).model_dump()
print(json.dumps({
    "seen": seen,
    "interfaces": [by_words.interface, by_config.interface],
    "before": [read_spec(old).problem, read_spec(old).spec.ticket],
    "shown": [config_view(specs[0], "handbook")[name] for name in GIVEN],
    "documented": [
        schemas["TrainingRequest"]["properties"]["ticket"]["description"],
        schemas["TrainingRequest"]["properties"]["momentum"]["description"],
        schemas["TrainBody"]["properties"]["ticket"]["description"],
        form["properties"]["ticket"]["description"],
        form["definitions"]["SFTConfig"]["properties"]["momentum"]["description"],
    ],
}))
"""


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """What a copy of the code with both options says of them."""
    root = tmp_path_factory.mktemp("copy")
    for name in PACKAGES:
        shutil.copytree(PROJECT_ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "prefect.yaml"):
        shutil.copy(PROJECT_ROOT / name, root / name)
    for name, line, added in (*JOB_OPTION, *ENGINE_OPTION):
        put_before(root / name, line, added)
    environment = os.environ | {"PYTHONPATH": str(root), "PREFECT__FLOW_RUN_ID": "550e8400-e29b-41d4-a716-446655440000"}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def put_before(file: Path, line: str, added: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count(line) == 1, (file.name, line)
    file.write_text(text.replace(line, added + line), encoding="utf-8")


def test_both_options_come_from_every_door_to_the_journal_of_the_job(followed):
    assert followed["interfaces"] == ["training", "sft"]
    assert followed["seen"] == [["T-1", 0.5]] * 7


def test_they_are_documented_and_shown_without_another_word(followed):
    assert followed["documented"] == ["T.", "M.", "T.", "T.", "M."]
    assert followed["shown"] == ["T-1", 0.5]


def test_a_job_from_before_has_the_default(followed):
    assert followed["before"] == [None, None]


def test_how_many_files_an_option_needs():
    where_it_is_used = 1
    assert len({name for name, *_ in JOB_OPTION}) + where_it_is_used <= 4
    assert len({name for name, *_ in ENGINE_OPTION}) + where_it_is_used <= 3
