"""What a job's real processes tell its watchdog through a real PostgreSQL, and hear from it."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Engine, func, update

from jobs.lifecycle.attempts import Attempt, has_concluded, mark_cancelled, mark_interrupted, read_attempts
from jobs.lifecycle.ends import keep_run
from jobs.settings import PROJECT_ROOT
from jobs.storage.schema import migrate
from jobs.storage.tables import JobAttempt, engine_for
from jobs.storage.trainer_role import make_role, trainer_url
from tests.bare_postgres import server

CHILD = """
import os, signal, sys
from uuid import UUID
from jobs.lifecycle.attempts import Attempt
how = os.environ["HOW"]
if "begins" in how:
    attempt = Attempt.begin(os.environ["TUNEYARD_DATABASE_URL"], UUID(os.environ["PREFECT__FLOW_RUN_ID"]))
if "stopped" in how:
    attempt.release(is_interrupted=True)
if "killed" in how:
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(3 if "fails" in how else 0)
"""

BEAT = """
import signal, sys, time
from uuid import UUID
from jobs.lifecycle import attempts
attempts.HEARTBEAT_SECONDS = 0.2
def stop(number, frame):
    print("stopped", flush=True)
    time.sleep(1)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
with attempts.Heartbeat(attempts.Attempt.begin(sys.argv[1], UUID(sys.argv[2]))):
    print("begun", flush=True)
    time.sleep(60)
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="tuneyard-ends-") as folder, server(Path(folder)) as url:
        migrate(url)
        yield url
        engine_for(url).dispose()


@pytest.fixture
def engine(url: str) -> Engine:
    return engine_for(url)


@pytest.fixture
def job_id(engine: Engine) -> UUID:
    """A job whose run is known."""
    made = uuid4()
    with engine.begin() as connection:
        keep_run(connection, made, {"name": "a-run", "parameters": {}})
    return made


def run_keeper(folder: Path, url: str, run_id: UUID, how: str, **more: str) -> int:
    (folder / "flows").mkdir()
    (folder / "flows" / "__init__.py").touch()
    (folder / "flows" / "__main__.py").write_text(CHILD)
    paths = f"{folder}{os.pathsep}{PROJECT_ROOT}"
    environment = os.environ | {"PYTHONPATH": paths, "TUNEYARD_DATABASE_URL": url, "HOW": how} | more
    environment["PREFECT__FLOW_RUN_ID"] = str(run_id)
    return subprocess.run([sys.executable, "-m", "jobs.keeper"], cwd=folder, env=environment, check=False).returncode


def read(engine: Engine, job_id: UUID) -> JobAttempt:
    return read_attempts(engine, [job_id])[job_id]


@pytest.mark.parametrize(
    ("how", "code", "cause"),
    [
        ("begins and is killed", 137, "killed"),
        ("begins and fails", 3, "crashed"),
        ("fails", 3, "crashed"),
        ("begins and is stopped", 0, None),
        ("begins, is stopped and fails", 3, None),
    ],
)
@pytest.mark.parametrize("is_process_worker", [True, False])
def test_a_crash_is_recorded_and_told_to_every_worker_but_the_one_that_would_report_it_twice(
    tmp_path: Path,
    url: str,
    engine: Engine,
    job_id: UUID,
    how: str,
    code: int,
    cause: str | None,
    is_process_worker: bool,
) -> None:
    more = {"PREFECT__CONTROL_PORT": "1"} if is_process_worker else {}
    assert run_keeper(tmp_path, url, job_id, how, **more) == (0 if is_process_worker else code)
    attempt = read(engine, job_id)
    assert (attempt.token, attempt.cause, attempt.is_interrupted) == (None, cause, "stopped" in how)
    if cause:
        assert attempt.message is not None
        assert ("was killed" if cause == "killed" else "exit code 3") in attempt.message


@pytest.mark.parametrize("how", ["begins and is killed", "fails"])
def test_a_crash_is_recorded_with_the_rights_of_a_trainer(
    tmp_path: Path, url: str, engine: Engine, job_id: UUID, how: str
) -> None:
    make_role(engine, url, with_password=False)
    assert run_keeper(tmp_path, trainer_url(url, None), job_id, how, PREFECT__CONTROL_PORT="1") == 0
    assert read(engine, job_id).cause == ("killed" if "killed" in how else "crashed")


def test_the_keeper_of_a_former_process_says_nothing_of_the_attempt_that_runs(
    tmp_path: Path, url: str, engine: Engine, job_id: UUID
) -> None:
    attempt = Attempt.begin(url, job_id)
    assert run_keeper(tmp_path, url, job_id, "fails", PREFECT__CONTROL_PORT="1") == 0
    assert (read(engine, job_id).token, read(engine, job_id).cause) == (attempt.token, None)


def test_a_crash_of_what_is_no_job_is_left_to_prefect(tmp_path: Path, url: str, engine: Engine) -> None:
    assert run_keeper(tmp_path, url, run := uuid4(), "fails", PREFECT__CONTROL_PORT="1") == 3
    assert read_attempts(engine, [run]) == {}


def test_a_process_that_knows_how_its_attempt_ended_is_no_crash(url: str, engine: Engine, job_id: UUID) -> None:
    assert not has_concluded(engine, job_id)
    attempt = Attempt.begin(url, job_id)
    assert not has_concluded(engine, job_id)
    attempt.release(cause="stack_unavailable", message="away")
    assert has_concluded(engine, job_id)
    Attempt.begin(url, job_id)
    assert not has_concluded(engine, job_id)
    mark_cancelled(engine, job_id)
    assert has_concluded(engine, job_id)


def test_a_stop_before_the_attempt_is_not_overwritten_by_a_crash(
    tmp_path: Path, url: str, engine: Engine, job_id: UUID
) -> None:
    mark_interrupted(engine, job_id)
    run_keeper(tmp_path, url, job_id, "fails")
    assert (read(engine, job_id).is_interrupted, read(engine, job_id).cause) == (True, None)


@pytest.mark.parametrize("is_workers", [True, False])
def test_a_process_whose_worker_does_not_stop_it_learns_of_a_cancellation_by_its_heartbeat(
    url: str, engine: Engine, job_id: UUID, is_workers: bool
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT__FLOW_RUN_ID"}
    environment |= {"PREFECT__FLOW_RUN_ID": str(job_id)} if is_workers else {}
    command = [sys.executable, "-c", BEAT, url, str(job_id)]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        mark_cancelled(engine, job_id)
        with engine.begin() as connection:
            just = func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 2.5)
            connection.execute(update(JobAttempt).where(JobAttempt.job_id == job_id).values(cancelled_at=just))
        if is_workers:
            assert (process.stdout.readline(), process.wait(60)) == ("stopped\n", 0)
        else:  # it is its user's, who may have more to do in it
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(2)
            process.send_signal(signal.SIGKILL)
