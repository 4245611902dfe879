"""What a process of the stack is given when it is started."""

import json
import os
import subprocess
import sys
from pathlib import Path

from jobs.project import PROJECT_ROOT
from jobs.settings import Settings
from jobs.stack.parts import build_parts, stack_environment

SECRETS = ("whsec_" + "bg" * 20, "owner-password")


def test_a_workers_environment_has_what_jobs_need(tmp_path: Path) -> None:
    own = "postgresql+psycopg2://owner:owner-password@db.example/tuneyard"
    trainers = "postgresql+psycopg2://tuneyard_trainer:pw@db.example/tuneyard"
    settings = Settings(
        home=tmp_path, database_url=own, trainer_database_url=trainers, webhook_secrets="whsec_" + "bg" * 20 + "=="
    )
    environment = stack_environment(settings)
    (worker,) = [part for part in build_parts(settings, []) if part.name == "worker-0"]
    launch = [*worker.command[: worker.command.index("--") + 1]]
    code = "import os, json; print(json.dumps(dict(os.environ)))"
    done = subprocess.run(
        [*launch, sys.executable, "-c", code],
        env=os.environ | environment,
        cwd=PROJECT_ROOT,
        capture_output=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["TUNEYARD_DATABASE_URL"] == trainers
    assert [name for name, value in found.items() if any(secret in value for secret in SECRETS)] == []
    assert found["MLFLOW_TRACKING_URI"] == environment["MLFLOW_TRACKING_URI"]
    assert found["TUNEYARD_PARENT_PID"].isdecimal()


def test_the_local_database_has_its_role_without_a_setting(tmp_path: Path) -> None:
    environment = stack_environment(Settings(home=tmp_path, trainer_database_url="postgresql://elsewhere/x"))
    assert environment["TUNEYARD_TRAINER_DATABASE_URL"].startswith("postgresql+psycopg2://tuneyard_trainer@/tuneyard?")
    assert environment["TUNEYARD_DATABASE_URL"].startswith("postgresql+psycopg2://postgres@/tuneyard?")


def test_without_a_role_workers_have_the_database_as_it_is_configured(tmp_path: Path) -> None:
    environment = stack_environment(Settings(home=tmp_path, database_url="postgresql+psycopg2://o:p@db.example/t"))
    assert "TUNEYARD_TRAINER_DATABASE_URL" not in environment
