"""Seconds from the start of a job's process to its first optimizer step, on a stack of its own with warm caches."""

import tempfile
import time
from pathlib import Path
from uuid import UUID

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from demo.model import MODEL_NAME, ensure_demo_model
from jobs.settings import Settings
from jobs.storage.events import read_events
from jobs.storage.tables import engine_for
from tests.live_service import running_service
from tests.processes import find_processes

ENDED = ("completed", "failed", "stopped")
CONFIG = {
    "base_model": MODEL_NAME,
    "dataset_name": "handbook@v1.1",
    "dataset_format": "auto",
    "lora_r": 16,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_steps": 1,
    "logging_steps": 1,
}


def main() -> None:
    """Print what each phase of a job takes until the first step."""
    figures = measure()
    table = Table("until", "seconds")
    for name, seconds in figures.items():
        table.add_row(name, f"{seconds:.1f}")
    Console().print(table)


def measure() -> dict[str, float]:
    """Seconds after its process started at which a job began each phase, and at which its first `step` was done.

    The second of two equal jobs is measured: the first fills the caches of data, tokens and bytecode.
    """
    with tempfile.TemporaryDirectory(prefix="tuneyard-bench-") as folder, running_service(Path(folder)) as (up, url):
        ensure_demo_model(up.model_root)
        with httpx.Client(base_url=url, timeout=60) as api:
            run_job(api, up)
            return run_job(api, up)


def run_job(api: httpx.Client, settings: Settings) -> dict[str, float]:
    """Run a job to its end; seconds from its process's start to its events up to the first step."""
    job_id = api.post("/api/sft/train", json={"config": CONFIG}).raise_for_status().json()["job_id"]
    started_at = find_process_start(job_id)
    while (job := api.get(f"/api/sft/jobs/{job_id}").raise_for_status().json())["status"] not in ENDED:
        time.sleep(0.2)
    if job["status"] != "completed":
        raise SystemExit(f"the job {job['status']}: {job['error']}")
    figures: dict[str, float] = {}
    for event in read_events(engine_for(str(settings.database_url)), UUID(job_id)):
        name = event.data["phase"] if event.event == "phase" else event.event
        figures.setdefault(name, round(event.created_at.timestamp() - started_at, 2))
        if event.event == "step":
            return figures
    raise SystemExit("the job took no step")


def find_process_start(job_id: str, seconds: float = 60) -> float:
    """When the first process of a job started, in epoch seconds. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := find_processes(job_id):
            return min(psutil.Process(pid).create_time() for pid in found)
        time.sleep(0.02)
    raise TimeoutError(f"job {job_id} had no process within {seconds} s")


if __name__ == "__main__":
    main()
