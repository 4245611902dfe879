"""`make demo`: posts one real training job and shows its progress. The last line is one JSON object."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from rich.console import Console

from demo.model import MODEL_NAME, ensure_demo_model
from demo.show import follow_job, show_answers, show_chat, show_intro, show_links
from jobs.network.proxies import bypass_proxies
from jobs.settings import PROJECT_ROOT, Settings
from jobs.stack import local as stack
from jobs.stack import parts
from sft.errors import StackError, TuneyardError
from tasks.dataset import resolve
from tuneyard_client.errors import ClientError

JOB = {
    "model_name": MODEL_NAME,
    "dataset_version": "v1.1",
    "template": "chatml",
    "lora_name": "handbook",
    "logging_backend": "mlflow",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "batch_size": 8,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "num_epochs": 3.0,
    "cutoff_len": 512,
    "max_grad_norm": 1.0,
    "logging_steps": 1,
}
API_START_SECONDS = 60


def main() -> int:
    """Set up what is missing, run the job, compare the adapter with the base model, and stop what was started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM cleans up like Ctrl-C
    bypass_proxies(os.environ)
    console = Console()
    settings = Settings()
    show_intro(console)
    try:
        with console.status("Converting the demo model (once)"):
            ensure_demo_model(settings.model_root)
        with running_stack(console, settings) as up, running_api(console, up) as api_url:
            summary = run_job(console, api_url, up)
    except (TuneyardError, ClientError) as error:
        console.print(f"[red]{error}[/red]")
        return 1
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    print(json.dumps(summary))
    return 0 if summary["status"] == "completed" else 1


def run_job(console: Console, api_url: str, settings: Settings) -> dict[str, Any]:
    """Post the job, follow it to its end and compare the answers before and after."""
    started_at = time.monotonic()
    console.print(f"\n[bold]POST {api_url}/train[/bold]")
    console.print_json(data=JOB)
    answer = httpx.post(f"{api_url}/train", json=JOB, timeout=120)
    console.print_json(data=answer.json())
    answer.raise_for_status()
    job_id = answer.json()["job_id"]
    show_links(console, settings, job_id)
    try:
        job = follow_job(console, api_url, job_id)
    except KeyboardInterrupt:
        httpx.delete(f"{api_url}/train/{job_id}", timeout=30)
        raise
    seconds = round(time.monotonic() - started_at, 1)
    result = job["result"] or {}
    if job["status"] == "completed":
        answers = answers_of(settings, result)
        show_answers(console, answers, result)
        show_chat(console, api_url, f"{result['model_name']}@{result['model_version']}", answers[0]["question"])
    keys = (
        "dataset_commit",
        "dataset_md5",
        "base_eval_loss",
        "eval_loss",
        "adapter_path",
        "model_name",
        "model_version",
    )
    summary = {"job_id": job_id, "status": job["status"]} | {key: result.get(key) for key in keys}
    return summary | {"seconds": seconds} | ({"error": job["error"]} if job["error"] else {})


def answers_of(settings: Settings, result: dict[str, Any]) -> list[dict[str, str]]:
    """Answers of the base model and the adapter to held-out questions, from a process that uses only peft."""
    model = settings.model_root / MODEL_NAME
    questions = resolve(result["dataset"], settings).eval_file
    command = [sys.executable, "-m", "demo.answers", str(model), result["adapter_path"], str(questions)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, check=False, capture_output=True, encoding="utf-8")
    if done.returncode:
        raise StackError(f"the adapter could not be asked: {done.stderr.strip().splitlines()[-1]}")
    answers: list[dict[str, str]] = json.loads(done.stdout)
    return answers


@contextmanager
def running_stack(console: Console, settings: Settings) -> Iterator[Settings]:
    """The local stack; stopped again if it was not up before."""
    was_up = stack.is_up(settings)
    with console.status("Starting PostgreSQL, Prefect, MLflow and a worker" if not was_up else "Looking for the stack"):
        up = stack.ensure_up(settings)
    try:
        yield up
    finally:
        if not was_up:
            with console.status("Stopping the stack"):
                stack.down(settings)


@contextmanager
def running_api(console: Console, settings: Settings) -> Iterator[str]:
    """The REST API; one that already runs is used and left running."""
    url = f"http://127.0.0.1:{settings.api_port}"
    if _is_tuneyard(url):
        yield url
        return
    parts.check_port("The API", settings.api_port, "TUNEYARD_API_PORT")
    log_path = settings.home / "logs" / "demo-api.log"
    command = [sys.executable, "-m", "uvicorn", "app.main:app", "--port", str(settings.api_port)]
    with log_path.open("w") as log:
        process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=log, stderr=subprocess.STDOUT)
    try:
        with console.status("Starting the API"):
            deadline = time.monotonic() + API_START_SECONDS
            while not _is_tuneyard(url):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise StackError(f"the API did not start; its log is {log_path}")
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def _is_tuneyard(url: str) -> bool:
    try:
        return bool(httpx.get(url, timeout=2).json().get("name") == "Tuneyard")
    except (httpx.HTTPError, ValueError, AttributeError):
        return False


if __name__ == "__main__":
    sys.exit(main())
