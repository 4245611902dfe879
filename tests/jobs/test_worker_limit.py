"""A worker without a limit trains one job at a time; those that it took too many wait, or go back into the queue."""

import os
import signal
import subprocess
import sys
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.states import Cancelling, Pending

from jobs.service.job_service import JobService
from jobs.settings import PROJECT_ROOT
from jobs.spec import JobSpec
from jobs.status import JobStatus
from jobs.worker_limit import takes_all
from tests.conftest import wait_until
from tests.live_service import wait_until_idle

CONFIG = {"base_model": "nobody/limit", "dataset_name": "handbook@v1.0", "dataset_format": "auto"}

WORKER = """
import subprocess, sys, time
jobs = [subprocess.Popen([sys.executable, *sys.argv[1].split()]) for _ in range(int(sys.argv[2]))]
for job in jobs:
    job.wait()
"""
JOB = """
import os, pathlib, time
pathlib.Path(f"{os.getpid()}.begun").write_text(str(time.monotonic()))
time.sleep(0.7)
for _ in range(600):  # until so many are at work
    if len([*pathlib.Path().glob("*.begun")]) >= int(os.environ.get("TOGETHER", "1")):
        break
    time.sleep(0.1)
pathlib.Path(f"{os.getpid()}.ended").write_text(str(time.monotonic()))
"""
ASK = """
import os, pathlib, sys, time
from jobs.worker_limit import worker_slot
with worker_slot(lambda: False, 0.2) as is_free:
    sys.stdout.write(f"{is_free}\\n")  # one write: the processes share a pipe
    sys.stdout.flush()
    if not is_free:
        pathlib.Path(f"{os.getpid()}.refused").touch()
    while is_free and len([*pathlib.Path().glob("*.refused")]) < 2:  # the others have waited
        time.sleep(0.1)
"""


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python -m prefect worker start --pool gpu", True),
        ("prefect worker start -p gpu -t process --name a", True),
        ("prefect worker start --pool gpu --limit 1", False),
        ("prefect worker start --pool gpu --limit=4", False),
        ("prefect worker start --pool gpu -l 1", False),
        ("/sbin/init", False),
        ("", False),
    ],
)
def test_the_command_of_a_worker_without_a_limit(command, expected):
    assert takes_all(command.split()) is expected


def start_worker(folder: Path, module: str, jobs: int, *options: str, together: int = 1) -> "subprocess.Popen[str]":
    """Start a process that has the command line of a worker and starts so many jobs at once.

    Each ends once so many have been at work `together`.
    """
    (folder / "flows").mkdir()
    (folder / "flows" / "__init__.py").touch()
    (folder / "flows" / "__main__.py").write_text(JOB)
    (folder / "ask.py").write_text(ASK)
    paths = {"PYTHONPATH": f"{folder}{os.pathsep}{PROJECT_ROOT}", "TUNEYARD_HOME": str(folder / "home")}
    paths["TOGETHER"] = str(together)
    command = [sys.executable, "-c", WORKER, f"-m {module}", str(jobs), "worker", "start", *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=folder, env=os.environ | paths, text=True, **pipes)


def read_times(folder: Path) -> list[tuple[float, float]]:
    """When each job began and ended, the first one first."""
    begun = folder.glob("*.begun")
    return sorted((float(path.read_text()), float(path.with_suffix(".ended").read_text())) for path in begun)


@pytest.mark.skipif(sys.platform != "linux", reason="the command line of a process is read from /proc")
def test_jobs_of_a_worker_without_a_limit_run_one_after_the_other(tmp_path):
    with start_worker(tmp_path, "jobs.keeper", 3) as worker:
        _, said = worker.communicate(timeout=150)
    times = read_times(tmp_path)
    assert len(times) == 3
    assert all(ended <= begun for (_, ended), (begun, _) in pairwise(times))
    assert said.count("start workers with `--limit 1`") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the command line of a process is read from /proc")
def test_a_limit_that_was_given_is_the_workers_own_affair(tmp_path):
    with start_worker(tmp_path, "jobs.keeper", 2, "--limit", "2", together=2) as worker:
        _, said = worker.communicate(timeout=150)
    (_, first_ended), (second_begun, _) = read_times(tmp_path)
    assert second_begun < first_ended
    assert said == ""


@pytest.mark.skipif(sys.platform != "linux", reason="the command line of a process is read from /proc")
def test_who_has_waited_long_enough_is_told_so(tmp_path):
    with start_worker(tmp_path, "ask", 3) as worker:
        said, _ = worker.communicate(timeout=150)
    assert sorted(said.split()) == ["False", "False", "True"]


@pytest.mark.stack
def test_a_run_goes_back_to_its_place_in_the_queue_unless_it_was_cancelled(stack):
    spec = JobSpec.build(config=CONFIG)
    wait_until_idle(stack)
    with closing(JobService(stack)) as service:
        service.client.update_work_pool(stack.work_pool, WorkPoolUpdate(is_paused=True))
        jobs = [service.submit(spec) for _ in range(3)]
        try:
            for job in jobs[:2]:
                service.client.set_flow_run_state(job.id, Pending(), force=True)
                service.client.update_flow_run(job.id, infrastructure_pid="somewhere:1")
                if job is jobs[1]:
                    service.client.set_flow_run_state(job.id, Cancelling(), force=True)
                variables = {"PREFECT__FLOW_RUN_ID": str(job.id), "TUNEYARD_HOME": str(stack.home)}
                variables |= {"PREFECT_API_URL": str(stack.prefect_api_url), "PYTHONPATH": str(PROJECT_ROOT)}
                command = [sys.executable, "-m", "jobs.requeue"]
                subprocess.run(command, env=os.environ | variables, check=True, timeout=150)
            ours = {job.id for job in jobs}  # one of another test may wait for the pool too
            assert [job_id for job_id in service.queue().waiting if job_id in ours] == [jobs[0].id, jobs[2].id]
            run = service.client.read_flow_run(jobs[0].id)
            assert (run.state.name, run.infrastructure_pid) == ("Scheduled", None)
            assert service.get(jobs[1].id).status is JobStatus.CANCELLED
        finally:
            for job in jobs:
                service.stop(job.id)
            url = f"{stack.prefect_api_url}/flow_runs/{jobs[1].id}/set_state"
            state = {"state": {"type": "CANCELLED", "name": "Cancelled"}, "force": True}
            httpx.post(url, json=state, timeout=30).raise_for_status()
            service.client.update_work_pool(stack.work_pool, WorkPoolUpdate(is_paused=False))


@pytest.mark.skipif(sys.platform != "linux", reason="the command line of a process is read from /proc")
def test_a_stop_ends_the_wait(tmp_path):
    with start_worker(tmp_path, "jobs.keeper", 2) as worker:
        wait_until(lambda: len([*tmp_path.glob("*.begun")]) == 1, 60)
        worker.send_signal(signal.SIGTERM)  # the kernel tells its children
        worker.communicate(timeout=90)
    assert len([*tmp_path.glob("*.begun")]) == 1
