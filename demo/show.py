"""What the demo prints."""

import time
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from jobs.settings import Settings

POLL_SECONDS = 0.5
SHOWN_CHARACTERS = 160
ENDED = ("completed", "failed", "cancelled")


def show_intro(console: Console) -> None:
    """Say what is about to happen."""
    console.rule("[bold]Tuneyard demo[/bold]")
    console.print("One real job: POST → Prefect → DVC → tokenize → LoRA SFT → evaluate → MLflow → adapter.\n")


def show_links(console: Console, settings: Settings, job_id: str) -> None:
    """Where to watch the job in a browser."""
    prefect_url = str(settings.prefect_api_url).removesuffix("/api")
    console.print(f"\nPrefect  {prefect_url}/runs/flow-run/{job_id}", soft_wrap=True)
    console.print(f"MLflow   {settings.mlflow_tracking_uri}\n", soft_wrap=True)


def follow_job(console: Console, api_url: str, job_id: str) -> dict[str, Any]:
    """Show the job's steps, and training as a bar, until it has ended; returns its last status."""
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(),
        TextColumn("step {task.completed:.0f} of {task.total:.0f}"),
        TextColumn("loss {task.fields[loss]}  {task.fields[speed]} tokens/s  {task.fields[left]} left"),
    )
    phase, bar = None, None
    shown_percent = 0.0
    with Progress(*columns, console=console) as progress, httpx.Client(timeout=30) as client:
        while True:
            job: dict[str, Any] = client.get(f"{api_url}/train/{job_id}").json()
            if job["phase"] != phase:
                phase = job["phase"]
                progress.console.print(f"[cyan]•[/cyan] {phase}")
                if phase == "evaluating" and job["tracking_url"]:
                    progress.console.print(f"  {job['tracking_url']}", soft_wrap=True)
            if step := job["progress"]:
                if bar is None:
                    bar = progress.add_task("training", total=step["total_steps"], loss="-", speed="-", left="-")
                fields: dict[str, Any] = _readable(step)
                progress.update(bar, completed=step["step"], **fields)
                if not console.is_terminal and step["percent"] >= shown_percent + 10:
                    shown_percent = step["percent"]
                    words = _readable(step)
                    progress.console.print(
                        f"  step {step['step']} of {step['total_steps']}  loss {words['loss']}  "
                        f"{words['speed']} tokens/s  {words['left']} left"
                    )
            if job["status"] in ENDED:
                return job
            time.sleep(POLL_SECONDS)


def _readable(step: dict[str, Any]) -> dict[str, str]:
    minutes, seconds = divmod(int(step["eta_seconds"] or 0), 60)
    loss = step.get("loss")
    return {
        "loss": "-" if loss is None else f"{loss:.3f}",
        "speed": f"{step['tokens_per_second']:.0f}",
        "left": f"{minutes}:{seconds:02d}",
    }


def _shorten(answer: str) -> str:
    """The beginning of an answer, on one line."""
    words = " ".join(answer.split())
    return words if len(words) <= SHOWN_CHARACTERS else words[: SHOWN_CHARACTERS - 1] + "…"


def show_answers(console: Console, answers: list[dict[str, str]], result: dict[str, Any]) -> None:
    """The same held-out questions, answered by the base model and by the adapter, and the loss on all of them."""
    table = Table(title="\nHeld-out questions, never trained on", show_lines=True)
    table.add_column("question", ratio=2)
    table.add_column("base model", ratio=3)
    table.add_column("adapter", ratio=3)
    for answer in answers:
        knows = answer["key"].lower() in answer["adapter"].lower()
        mark = Text("✓ " if knows else "", style="green")
        table.add_row(
            answer["question"], _shorten(answer["base"]), mark.append(_shorten(answer["adapter"]), style="none")
        )
    console.print(table)
    before, after = result["base_eval_loss"], result["eval_loss"]
    console.print(f"\nHeld-out loss  {before:.3f} → [bold]{after:.3f}[/bold]  ({(after - before) / before:+.0%})")
    peak_gb = result["metrics"]["peak_memory_bytes"] / 1e9
    console.print(f"Speed          {result['metrics']['tokens_per_second']:.0f} tokens/s, {peak_gb:.1f} GB at the peak")
    console.print(f"Adapter        {result['adapter_path']}", soft_wrap=True)
    console.print(f"Registry       models:/{result['model_name']}/{result['model_version']}\n", soft_wrap=True)
