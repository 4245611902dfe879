"""Whether a job that was interrupted ends with the same weights as one that was left in peace."""

import io
import tarfile
import time
from collections import Counter

import httpx

from tests.chaos.clients import Clients, ask
from tests.chaos.pacing import wait_until
from tests.pool.observer import Resume
from tests.pool.pool import Pool

TWIN_SECONDS = 180.0


def compare_with_twin(pool: Pool, clients: Clients, resumes: list[Resume]) -> bool | None:
    """Whether the job that was interrupted most often has the same adapter as one left in peace; None without one."""
    times = Counter(resume.job_id for resume in resumes if resume.step > 0)
    completed = [job_id for job_id, _ in times.most_common() if _last(clients, job_id) == "completed"]
    if not completed:
        return None
    with httpx.Client(base_url=pool.url, timeout=60) as api:
        body = clients.accepted[completed[0]].body | {"lora_name": "twin", "webhook_url": None}
        twin = api.post("/train", json=body).raise_for_status().json()["job_id"]
        wait_until(
            lambda: ask(api, f"/train/{twin}", TWIN_SECONDS).json()["status"] in ("completed", "failed"),
            time.monotonic() + TWIN_SECONDS,
        )
        weights = [_read_weights(api, job_id) for job_id in (completed[0], twin)]
    print(f"{completed[0]} was resumed {times[completed[0]]} times; its twin is {twin}", flush=True)
    return weights[0] == weights[1] and weights[0] is not None


def _read_weights(api: httpx.Client, job_id: str) -> bytes | None:
    answer = api.get(f"/train/{job_id}/adapter")
    if not answer.is_success:
        print(f"no adapter of {job_id}: {answer.text}")
        return None
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        name = next(name for name in archive.getnames() if name.endswith("adapter_model.safetensors"))
        file = archive.extractfile(name)
        return file.read() if file else None


def _last(clients: Clients, job_id: str) -> str | None:
    sight = clients.watcher.last(job_id)
    return sight.status if sight else None
