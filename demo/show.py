"""The demo's terminal output."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.settings import Settings
from tuneyard_cli.answers import Chat
from tuneyard_cli.watch import watch_job
from tuneyard_client import Tuneyard

SHOWN_CHARACTERS = 160
ANSWER_TOKENS = 60
WAIT_SECONDS = 120  # for the memory of the job that has just ended


def show_intro(console: Console) -> None:
    """Explain what the demo does."""
    console.rule("[bold]Tuneyard demo[/bold]")
    console.print("One real job: POST → Prefect → DVC → tokenize → LoRA SFT → evaluate → MLflow → adapter.\n")


def show_links(console: Console, settings: Settings, job_id: str) -> None:
    """Show where to watch the job in a browser."""
    prefect_url = str(settings.prefect_api_url).removesuffix("/api")
    console.print(f"\nPrefect  {prefect_url}/runs/flow-run/{job_id}", soft_wrap=True)
    console.print(f"MLflow   {settings.mlflow_tracking_uri}\n", soft_wrap=True)


def follow_job(console: Console, api_url: str, job_id: str) -> dict[str, Any]:
    """Show the job's steps, and training as a bar, until it has ended; returns its last status."""
    with Tuneyard(api_url) as client:
        return watch_job(client, job_id, console).model_dump()


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


def show_chat(console: Console, api_url: str, adapter: str, question: str) -> None:
    """Ask the service itself, as `tuneyard chat` does, and show the commands that go on from here."""
    console.print(f"[bold]tuneyard chat {adapter} {question!r} --base[/bold]", soft_wrap=True)
    with Tuneyard(api_url) as client:
        base = client.model(adapter).parent
        models = [base, adapter] if base else [adapter]
        conversation = Chat(
            client, models, None, {"temperature": 0, "max_tokens": ANSWER_TOKENS, "wait_seconds": WAIT_SECONDS}
        )
        conversation.ask(question, is_shown=True)
    console.print(f"\nTry your own: tuneyard serve, then tuneyard chat {adapter} --base\n", soft_wrap=True)
