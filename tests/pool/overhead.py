"""What sending checkpoints to the store costs training: the same job with and without the store, in turn."""

from typing import Any

import httpx

from tests.pool.pool import Pool
from tests.pool.servers import wait_for
from tests.pool.small_model import NAME

CONFIG = {
    "base_model": NAME,
    "dataset_name": "handbook@v1.1",
    "dataset_format": "auto",
    "template_name": "chatml",
    "max_samples": 64,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "mixed_precision": "none",
    "max_steps": 80,
    "save_steps": 20,
    "validation_split": 0,
}
JOB_SECONDS = 240.0


def measure_overhead(pool: Pool, pairs: int) -> tuple[float, list[str]]:
    """Percent of training time that the store costs, by the fastest of so many jobs each; and the jobs' ids.

    What else runs on the machine makes a job slower, never faster.
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    ids = []
    with pool.servers.open_prefect() as prefect, httpx.Client(base_url=pool.url, timeout=30) as api:
        for number in range(2 * pairs):
            has_store = number % 4 in (0, 3)  # neither of them always first
            job_id = _submit(prefect, has_store)
            seconds[has_store].append(_wait_for_end(api, job_id))
            ids.append(job_id)
            print(f"  {'with' if has_store else 'without'} the store: {seconds[has_store][-1]:.2f} s", flush=True)
    return 100 * (min(seconds[True]) / min(seconds[False]) - 1), ids


def _submit(prefect: httpx.Client, has_store: bool) -> str:
    deployment = prefect.get("/deployments/name/finetune/sft").raise_for_status().json()["id"]
    body: dict[str, Any] = {"parameters": {"config": CONFIG}}
    if not has_store:
        body["job_variables"] = {"env": {"TUNEYARD_STORE": ""}}
    made = prefect.post(f"/deployments/{deployment}/create_flow_run", json=body).raise_for_status()
    return str(made.json()["id"])


def _wait_for_end(api: httpx.Client, job_id: str) -> float:
    """Seconds of training."""

    def has_ended() -> bool:
        answer = api.get(f"/train/{job_id}")
        return answer.is_success and answer.json()["status"] in ("completed", "failed", "cancelled")

    wait_for(has_ended, f"the end of job {job_id}", JOB_SECONDS)
    job = api.get(f"/train/{job_id}").json()
    if job["status"] != "completed":
        raise RuntimeError(f"job {job_id} {job['status']}: {job['error']}")
    return float(job["result"]["metrics"]["train_seconds"])
