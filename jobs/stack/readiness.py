"""Checks the parts that jobs need, for `GET /ready` and `tuneyard doctor`. Starts nothing."""

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import psycopg2

from jobs.daemon_threads import DaemonThreads
from jobs.engine.blockers import describe_missing, find_blocker
from jobs.engine.capacity import ON_OWN_HOST, needs_worker
from jobs.engine.credentials import open_client
from jobs.errors import StoreRefused
from jobs.mlflow_server import MlflowServer, explain_refusal
from jobs.network.deadlines import allow, call_deadline
from jobs.network.failures import describe_failure
from jobs.settings import Settings
from jobs.shared_store import SharedStore
from jobs.stack import parts, postgres
from jobs.stack.endpoints import Endpoints
from jobs.status import JobStatus, state_types
from jobs.vocabulary import DEPLOYMENT_NAME, FLOW_NAME, RunState
from sft.errors import StackError

TIMEOUT_SECONDS = 3.0
JOB_STATES = {  # Prefect's state types; a created job that is not started counts as `queued`
    "queued": state_types(JobStatus.QUEUED),
    "running": state_types(JobStatus.STARTING, JobStatus.RUNNING),
    "completed": state_types(JobStatus.COMPLETED),
    "failed": state_types(JobStatus.FAILED),
    "cancelled": state_types(JobStatus.CANCELLED),
}
STORE = "store"
_store_threads = DaemonThreads("store")


@dataclass(frozen=True)
class PartCheck:
    """The result of one check; `detail` describes it in a few words, and says what to do if `is_warning`."""

    ok: bool
    detail: str
    is_warning: bool = False


def known_addresses(settings: Settings) -> Settings:
    """`settings` with the addresses of the running stack, or of the one that would be started."""
    endpoints = Endpoints.read(settings.home)
    return endpoints.fill(settings) if endpoints else parts.fill_addresses(settings)


def check_parts(settings: Settings) -> dict[str, PartCheck]:
    """Check all parts in parallel, by name; takes at most a few seconds."""
    resolved = known_addresses(settings)
    checks: dict[str, Callable[[], PartCheck]] = {
        "database": functools.partial(_check_database, str(resolved.database_url)),
        "prefect": functools.partial(_check_prefect, resolved),
        "mlflow": functools.partial(_check_mlflow, MlflowServer.find(resolved)),
        "worker": functools.partial(_check_worker, resolved),
        "work_pool": functools.partial(_check_work_pool, resolved),
        "watchdog": functools.partial(_check_watchdog, str(resolved.database_url)),
    }
    if (store := SharedStore.find(resolved)) is not None:
        checks[STORE] = functools.partial(_check_store, store)
    with ThreadPoolExecutor(len(checks)) as pool:
        running = {name: pool.submit(_within_time, check) for name, check in checks.items()}
        return {name: check.result() for name, check in running.items()}


def _within_time(check: Callable[[], PartCheck]) -> PartCheck:
    with allow(TIMEOUT_SECONDS), call_deadline():
        return check()


def count_jobs(settings: Settings) -> dict[str, int]:
    """Number of jobs in each group of states. Raises httpx.HTTPError if Prefect can't be asked."""
    with open_client(known_addresses(settings), TIMEOUT_SECONDS) as client, call_deadline(TIMEOUT_SECONDS):
        return {status: _count(client, types) for status, types in JOB_STATES.items()}


def _count(client: httpx.Client, types: Sequence[str]) -> int:
    wanted = {"flows": {"name": {"any_": [FLOW_NAME]}}, "flow_runs": {"state": {"type": {"any_": types}}}}
    return int(client.post("/flow_runs/count", json=wanted).raise_for_status().json())


def _check_database(url: str) -> PartCheck:
    ok = postgres.is_ready(url)
    return PartCheck(ok, "accepts connections" if ok else "accepts no connections")


def _check_watchdog(url: str) -> PartCheck:
    try:
        holder = postgres.find_watchdog(url)
    except psycopg2.OperationalError:
        return PartCheck(False, "unknown, the database does not respond")
    consequence = "lost jobs are not restarted and no webhook is sent"
    if holder is None or not holder.is_connected:
        return PartCheck(False, f"not running: {consequence}")
    who = f"pid {holder.pid} on {holder.host}"
    if not holder.is_active:
        return PartCheck(False, f"{who} has not responded for {holder.idle_seconds:.0f} s: {consequence}")
    return PartCheck(True, "running")


def _check_prefect(settings: Settings) -> PartCheck:
    try:
        with open_client(settings, TIMEOUT_SECONDS) as client:
            status = client.get("/health").status_code
    except httpx.HTTPError as error:
        return PartCheck(False, f"does not respond ({describe_failure(error)})")
    return PartCheck(status == httpx.codes.OK, _describe(status))


def _check_mlflow(server: MlflowServer) -> PartCheck:
    if not server.has_api:
        return PartCheck(True, "no server: it is reached without HTTP")
    try:
        with server.open(TIMEOUT_SECONDS) as client:
            status = client.get(f"{server.url}/health").status_code
            if status == httpx.codes.OK:  # it says nothing about the credentials
                status = client.get("mlflow/experiments/search", params={"max_results": 1}).status_code
    except httpx.HTTPError as error:
        return PartCheck(False, f"does not respond ({describe_failure(error)})")
    return PartCheck(status == httpx.codes.OK, explain_refusal(status) or _describe(status))


def _check_worker(settings: Settings) -> PartCheck:
    name = settings.work_pool
    at_work = {"state": {"type": {"any_": [RunState.PENDING, RunState.RUNNING]}}}
    try:
        with open_client(settings, TIMEOUT_SECONDS) as client:
            pool = client.get(f"/work_pools/{name}")
            if pool.status_code == httpx.codes.NOT_FOUND:
                return PartCheck(False, describe_missing(name))
            workers = client.post(f"/work_pools/{name}/workers/filter", json={}).raise_for_status().json()
            wanted = {"work_pools": {"name": {"any_": [name]}}, "flow_runs": at_work}
            taken = client.post("/flow_runs/count", json=wanted).raise_for_status().json()
        return judge_workers(
            name,
            pool.raise_for_status().json()["type"],
            sum(worker["status"] == "ONLINE" for worker in workers),
            taken,
        )
    except httpx.HTTPError as error:
        return PartCheck(False, f"unknown, Prefect does not respond ({describe_failure(error)})")


def judge_workers(work_pool: str, pool_type: str, online: int, taken: int) -> PartCheck:
    """Judge the workers of a pool.

    Args:
        taken: runs that workers have taken. Prefect does not tell a worker's limit, but one that has more than one run
            was started without `--limit 1`.
    """
    if not needs_worker(pool_type):
        return PartCheck(True, f"none is needed: Prefect starts the jobs of work pool {work_pool}")
    detail = f"{online} online in work pool {work_pool}"
    if pool_type in ON_OWN_HOST and taken > online > 0:
        advice = "start each worker with `--limit 1`, else it takes all waiting jobs"
        return PartCheck(True, f"{detail}, and {taken} runs taken; {advice}", is_warning=True)
    return PartCheck(online > 0, detail)


def _check_work_pool(settings: Settings) -> PartCheck:
    """Whether jobs can start: pool, work queues and deployment exist and are not paused."""
    path = f"/work_pools/{settings.work_pool}"
    try:
        with open_client(settings, TIMEOUT_SECONDS) as client:
            pool = client.get(path)
            if pool.status_code == httpx.codes.NOT_FOUND:
                return PartCheck(False, describe_missing(settings.work_pool))
            queues = client.post(f"{path}/queues/filter", json={}).raise_for_status().json()
            deployment = client.get(f"/deployments/name/{DEPLOYMENT_NAME}")
        pool.raise_for_status()
    except httpx.HTTPError as error:
        return PartCheck(False, f"unknown, Prefect does not respond ({describe_failure(error)})")
    if deployment.status_code == httpx.codes.NOT_FOUND or deployment.json()["work_pool_name"] != settings.work_pool:
        return PartCheck(False, f"the deployment {DEPLOYMENT_NAME} is gone from Prefect; run `tuneyard up`")
    parts = [(f"the work pool {settings.work_pool}", pool.json())]
    parts += [(f"the work queue {queue['name']}", queue) for queue in queues]
    found = [find_blocker(name, part["is_paused"], part["concurrency_limit"]) for name, part in parts]
    blockers = [blocker for blocker in found if blocker]
    return PartCheck(not blockers, "; ".join(blockers) or f"{settings.work_pool} lets jobs start")


def _check_store(store: SharedStore) -> PartCheck:
    """Whether jobs can use the store. A store's own messages may name accounts, and this one is shown to everybody."""
    try:
        _store_threads.start(store.check).result(TIMEOUT_SECONDS)
    except StoreRefused:
        return PartCheck(False, "can't be used as it is; `tuneyard doctor` says why")
    except (StackError, TimeoutError):
        detail = "does not respond, or is full: jobs train, and their checkpoints are sent when it takes them"
        return PartCheck(True, detail, is_warning=True)
    return PartCheck(True, "takes files")


def _describe(status: int) -> str:
    return "responds" if status == httpx.codes.OK else f"responds {status}"
