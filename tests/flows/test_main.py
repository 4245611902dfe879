"""`python -m flows` as Prefect's worker starts it; tests/e2e runs whole jobs through it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jobs.settings import PROJECT_ROOT


@pytest.mark.parametrize("run_id", [None, "no-uuid"])
def test_without_a_run_it_says_so_and_fails(run_id: str | None, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment |= {"PREFECT_HOME": str(tmp_path)} | ({"PREFECT__FLOW_RUN_ID": run_id} if run_id else {})
    command = [sys.executable, "-m", "flows"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, check=False, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 1
    assert "Invalid flow run id" in done.stderr


def test_every_deployment_starts_it_through_the_keeper() -> None:
    deployments = yaml.safe_load((PROJECT_ROOT / "prefect.yaml").read_text())["deployments"]
    assert {entry["work_pool"]["job_variables"]["command"] for entry in deployments} == {"python -m jobs.keeper"}


def test_a_process_that_waits_for_a_thread_at_its_exit_ends():
    waiting = "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()"
    code = f"from flows.__main__ import end_within; {waiting}; end_within(0.5)"

    assert subprocess.run([sys.executable, "-c", code], timeout=150, check=False).returncode == 1
