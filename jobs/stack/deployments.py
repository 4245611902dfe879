"""Creates the work pool and deployments on a Prefect server, and restarts the local one's interrupted runs."""

import hashlib
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import yaml

from jobs.engine.credentials import open_client
from jobs.engine.pool_runs import PoolRuns
from jobs.engine.processes import is_process_of
from jobs.project import PROJECT_ROOT, find_sources
from jobs.retrain_spec import RetrainSpec
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.vocabulary import FLOW_NAME, PAGE_SIZE, RunState, StateName, make_state
from sft.errors import StackError

FLOW_PARAMETERS = (JobSpec, RetrainSpec)  # their fields are the flows' parameters
CUT_OFF = [RunState.RUNNING, RunState.PENDING, RunState.CANCELLING]
RESTART_MESSAGE = "The local stack was stopped while this job ran; it restarts automatically."


def ensure_work_pool(settings: Settings, name: str, concurrency_limit: int | None) -> dict[str, Any]:
    """Create the process work pool, or update its limit if one is given; returns the pool as Prefect has it.

    A pool of another type is kept as it is.
    """
    with open_client(settings) as client:
        pool = {"name": name, "type": "process", "concurrency_limit": concurrency_limit}
        is_there = client.post("/work_pools/", json=pool).status_code == httpx.codes.CONFLICT
        if is_there and concurrency_limit is not None:
            changed = client.patch(f"/work_pools/{name}", json={"concurrency_limit": concurrency_limit})
            changed.raise_for_status()
        found: dict[str, Any] = client.get(f"/work_pools/{name}").raise_for_status().json()
        return found


def deploy(
    settings: Settings, work_pool: str, state_folder: Path, environment: Mapping[str, str], python: str = sys.executable
) -> bool:
    """Create or update the deployments of prefect.yaml on the server; False if they are up to date.

    Prefect gets a copy of the file with this work pool and this interpreter of the workers. No path of this machine's
    code is in it: jobs import the flows. Schedules are created with a deployment
    and belong to the user afterwards: Prefect would replace theirs by the file's, turn on those that were turned off,
    and refuse the file if one of them has a slug that it does not name.

    Raises:
        StackError: Prefect refuses the file, misreads the path of the interpreter, or can't load a flow.
    """
    if "{{" in python:
        raise StackError(f"Prefect reads '{{{{' in {python} as a template; install Tuneyard in a folder without it")
    source = (find_sources() / "prefect.yaml").read_text(encoding="utf-8")
    stamp, stamp_path = fingerprint(source, work_pool, python), state_folder / "deployed"
    config = yaml.safe_load(source)
    names = {entry["name"] for entry in config["deployments"]}
    known = deployed_names(settings)
    if (
        stamp_path.exists()
        and stamp_path.read_text(encoding="utf-8") == stamp
        and names <= deployed_names(settings, work_pool)
    ):
        return False
    for entry in config["deployments"]:
        if entry["name"] in known:
            entry.pop("schedules", None)
        variables = entry["work_pool"]["job_variables"]
        command = variables["command"].replace("python", shlex.quote(python), 1)
        entry["work_pool"] = {"name": work_pool, "job_variables": {**variables, "command": command}}
    file = state_folder / "prefect.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)],
        cwd=PROJECT_ROOT,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=120,
    )
    missing = names - deployed_names(settings, work_pool)
    if done.returncode or missing:
        raise StackError(f"deployments of {file} failed: {(done.stdout + done.stderr).strip()[-2000:]}")
    stamp_path.write_text(stamp, encoding="utf-8")
    return True


def fingerprint(prefect_file: str, work_pool: str, python: str = sys.executable) -> str:
    """Digest of everything in a deployment: file, pool, interpreter, the flows and their parameters' schemas.

    The schemas count, not the modules that they are built from.
    """
    schemas = [model.model_json_schema() for model in FLOW_PARAMETERS]
    made_of = [prefect_file, work_pool, python, version("prefect"), schemas]
    digest = hashlib.sha256(json.dumps(made_of).encode())
    for path in sorted((PROJECT_ROOT / "flows").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def find_missing(settings: Settings, work_pool: str) -> list[str]:
    """Name the work pool and deployments that were deleted in Prefect."""
    with open_client(settings) as client:
        has_pool = client.get(f"/work_pools/{work_pool}").status_code != httpx.codes.NOT_FOUND
    there = deployed_names(settings, work_pool)
    names = [entry["name"] for entry in read_deployments()]
    missing = [] if has_pool else [f"work pool {work_pool}"]
    return missing + [f"deployment {name}" for name in names if name not in there]


def read_deployments() -> list[dict[str, Any]]:
    """The deployments of prefect.yaml."""
    source = (find_sources() / "prefect.yaml").read_text(encoding="utf-8")
    entries: list[dict[str, Any]] = yaml.safe_load(source)["deployments"]
    return entries


def deployed_names(settings: Settings, work_pool: str | None = None) -> set[str]:
    """Names of the server's deployments, or of those of this work pool."""
    with open_client(settings) as client:
        response = client.post("/deployments/filter", json={"limit": PAGE_SIZE}).raise_for_status()
        return {entry["name"] for entry in response.json() if work_pool in (None, entry["work_pool_name"])}


def online_workers(settings: Settings, work_pool: str, since_iso: str) -> set[str]:
    """Names of the pool's workers with a heartbeat after `since_iso` (ISO 8601, UTC)."""
    with open_client(settings) as client:
        response = client.post(f"/work_pools/{work_pool}/workers/filter", json={"limit": PAGE_SIZE}).raise_for_status()
        return {worker["name"] for worker in response.json() if (worker["last_heartbeat_time"] or "") > since_iso}


def restart_interrupted_runs(settings: Settings, work_pool: str) -> list[str]:
    """Put runs that lost their process back into the queue, as the same runs; returns their ids.

    Call it while no worker of the stack runs. Jobs are left to `jobs.watchdog.recovery`. A run that was being
    cancelled becomes Cancelled. A run whose process is alive (of a foreign worker on this pool) is left alone.
    """
    changed = []
    with open_client(settings) as client:
        runs = PoolRuns(client, work_pool)
        _, others = runs.read(CUT_OFF, FLOW_NAME)
        for run in others:
            if is_process_of(run["id"], run["infrastructure_pid"]):
                continue
            state = make_state(RunState.SCHEDULED, RESTART_MESSAGE, StateName.AWAITING_RETRY)
            if run["state_type"] == RunState.CANCELLING:
                state = make_state(RunState.CANCELLED, "Cancelled when the local stack was stopped.")
            elif run["state_type"] == RunState.PENDING:
                state = make_state(RunState.SCHEDULED, RESTART_MESSAGE)
            runs.forget_process(run["id"])
            runs.set_state(run["id"], state, force=True)
            changed.append(run["id"])
    return changed
