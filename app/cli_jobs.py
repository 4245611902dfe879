"""`tuneyard submit`, `list`, `show`, `watch`, `logs`, `download`, `cancel`, `deliveries`: jobs of a running service."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from app.cli_service import (
    JobArgument,
    JsonOption,
    UrlOption,
    connected,
    load_yaml,
    print_json,
    read_mapping,
    read_pairs,
)

if TYPE_CHECKING:
    from tuneyard_client import Tuneyard
    from tuneyard_client.models import Delivery, Job

PANEL = "Jobs"
WIDE = 180  # columns of a table that goes into a file or a pipe

Status = Literal["queued", "running", "completed", "failed", "cancelled"]
FileOption = typer.Option("--file", "-f", exists=True, dir_okay=False, help="YAML or JSON with fields of either API.")
SetOption = typer.Option("--set", metavar="KEY=VALUE", help="Any other field; may be repeated.")
PairOption = typer.Option("--metadata", metavar="KEY=VALUE", help="A label; may be repeated.")

EventOption = typer.Option(metavar="started|checkpoint", help="Call the webhook for this too; may be repeated.")

commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def submit(
    model: Annotated[str | None, typer.Option(help="Base model.")] = None,
    dataset: Annotated[str | None, typer.Option(help="NAME@REVISION, or REVISION of the default dataset.")] = None,
    name: Annotated[str | None, typer.Option(help="The adapter's name in the registry.")] = None,
    template: Annotated[str | None, typer.Option(help="Chat template.")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many optimizer steps.")] = None,
    max_samples: Annotated[int | None, typer.Option(help="Train on at most this many rows.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows a device sees at once.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    cutoff_len: Annotated[int | None, typer.Option(help="Longest row in tokens.")] = None,
    lora_r: Annotated[int | None, typer.Option(help="LoRA rank.")] = None,
    tracking: Annotated[Literal["mlflow", "wandb"] | None, typer.Option(help="Where metrics are shown.")] = None,
    webhook: Annotated[str | None, typer.Option(help="URL to call once the job has ended.")] = None,
    webhook_event: Annotated[list[str] | None, EventOption] = None,
    priority: Annotated[Literal["high", "normal", "low"] | None, typer.Option(help="Place in the queue.")] = None,
    metadata: Annotated[list[str] | None, PairOption] = None,
    file: Annotated[Path | None, FileOption] = None,
    config: Annotated[str | None, typer.Option(metavar="ID", help="Start from this saved configuration.")] = None,
    set_: Annotated[list[str] | None, SetOption] = None,
    reject: Annotated[bool, typer.Option("--reject", help="Fail instead of waiting behind another job.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the job to its end.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Submit a job and print its id.

    The service's defaults stand for what is not given. Flags override the file, --set overrides both.
    With --watch the exit code is 0 when the job completes and 1 otherwise.
    """
    from app.cli_submission import build_submission

    flags = {
        "model_name": model,
        "dataset_version": dataset,
        "lora_name": name,
        "template": template,
        "num_epochs": epochs,
        "max_steps": max_steps,
        "max_samples": max_samples,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "cutoff_len": cutoff_len,
        "lora_r": lora_r,
        "tracking_backend": tracking,
        "webhook_url": webhook,
        "webhook_events": webhook_event or None,
        "priority": priority,
        "metadata": read_pairs("--metadata", metadata or []) or None,
    }
    settings = {key: load_yaml(value) for key, value in read_pairs("--set", set_ or []).items()}
    with connected(url) as client:
        submission = build_submission(read_mapping(file) if file else {}, flags, settings, config)
        submitted = submission.send(client, "reject" if reject else "queue")
        if watch:
            typer.echo(submitted.job_id, err=as_json)
            raise typer.Exit(_watch(client, submitted.job_id, as_json))
        if as_json:
            print_json(submitted.model_dump(mode="json"))
            return
        typer.echo(submitted.job_id)
        typer.echo(submitted.message or f"The job is {submitted.status}", err=True)


@commands.command("list", rich_help_panel=PANEL)
def list_jobs(
    status: Annotated[Status | None, typer.Option(help="Only jobs in this state.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs of this base model.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Only jobs of this adapter.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only jobs on this dataset.")] = None,
    after: Annotated[str | None, typer.Option(metavar="TIME", help="Only jobs made after this ISO 8601 time.")] = None,
    before: Annotated[str | None, typer.Option(metavar="TIME", help="Only jobs made before it.")] = None,
    metadata: Annotated[list[str] | None, PairOption] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="The newest so many.")] = 20,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """List jobs, newest first."""
    filters: dict[str, Any] = {
        "status": status,
        "model": model,
        "adapter": adapter,
        "dataset": dataset,
        "created_after": after,
        "created_before": before,
        "metadata": read_pairs("--metadata", metadata or []) or None,
    }
    with connected(url) as client:
        jobs = client.jobs(limit=limit, **filters)
    if as_json:
        print_json([job.model_dump(mode="json") for job in jobs])
    else:
        _print_table(jobs)


@commands.command(rich_help_panel=PANEL)
def show(job_id: JobArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Show all that is known of a job."""
    import yaml

    with connected(url) as client:
        job = client.job(job_id).model_dump(mode="json", exclude_none=not as_json)
    if as_json:
        print_json(job)
    else:
        typer.echo(yaml.safe_dump(job, sort_keys=False, allow_unicode=True), nl=False)


@commands.command(rich_help_panel=PANEL)
def watch(job_id: JobArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Follow a job to its end. Exit code 0 when it completes, 1 otherwise."""
    with connected(url) as client:
        raise typer.Exit(_watch(client, job_id, as_json))


@commands.command(rich_help_panel=PANEL)
def logs(
    job_id: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=0, help="Only the last so many lines.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Print a job's log."""
    with connected(url) as client:
        for line in client.logs(job_id, follow=follow, tail=tail):
            if as_json:
                typer.echo(line.model_dump_json())
            else:
                typer.echo(f"{line.timestamp.astimezone():%Y-%m-%d %H:%M:%S}  {line.level:<7}  {line.message}")


@commands.command(rich_help_panel=PANEL)
def download(
    job_id: JobArgument,
    folder: Annotated[Path, typer.Argument(help="A folder that is not there yet, or is empty.")],
    url: UrlOption = None,
) -> None:
    """Download a completed job's adapter into a folder, its checksum verified."""
    with connected(url) as client:
        typer.echo(client.download_adapter(job_id, folder))


@commands.command(rich_help_panel=PANEL)
def cancel(job_id: JobArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Cancel a queued or running job."""
    with connected(url) as client:
        answer = client.cancel(job_id)
    if as_json:
        print_json(answer.model_dump(mode="json"))
    else:
        typer.echo(answer.message)


@commands.command(rich_help_panel=PANEL)
def deliveries(
    job_id: JobArgument,
    resend: Annotated[str | None, typer.Option(metavar="DELIVERY", help="Call the webhook again.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """List what a job's webhook has been told, attempt by attempt, or have it told again."""
    with connected(url) as client:
        found = [client.resend(job_id, resend)] if resend else client.deliveries(job_id)
    if as_json:
        print_json([delivery.model_dump(mode="json") for delivery in found])
        return
    for delivery in found:
        then = f", next attempt {delivery.next_attempt_at.astimezone():%H:%M:%S}" if delivery.next_attempt_at else ""
        typer.echo(f"{delivery.delivery_id}  {_name_event(delivery):<10}  {delivery.state}{then}  {delivery.url}")
        for attempt in delivery.attempts:
            said = attempt.error or f"HTTP {attempt.status_code}"
            typer.echo(f"    {attempt.time.astimezone():%Y-%m-%d %H:%M:%S}  {said}")


def _name_event(delivery: "Delivery") -> str:
    return delivery.status if delivery.event == "ended" else delivery.event


def _watch(client: "Tuneyard", job_id: str, as_json: bool) -> int:
    """Follow a job; the exit code."""
    from rich.console import Console

    from app.cli_watch import watch_job

    job = watch_job(client, job_id, Console(stderr=as_json))
    if as_json:
        print_json(job.model_dump(mode="json"))
    elif job.status == "completed":
        typer.echo(f"completed: {job.output_path}")
    else:
        typer.echo(f"tuneyard: job {job_id} {job.status}{f': {job.error}' if job.error else ''}", err=True)
    return 0 if job.status == "completed" else 1


def _print_table(jobs: "list[Job]") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    table = Table(box=None, pad_edge=False)
    table.add_column("ID", no_wrap=True)
    for header in ("STATUS", "MODEL", "DATASET", "ADAPTER", "PROGRESS", "STARTED"):
        table.add_column(header, overflow="fold")
    for job in jobs:
        config = job.config
        state = f"{job.status} ({job.queue_position})" if job.queue_position is not None else job.status
        progress = f"{job.progress.percent:.0f} %" if job.progress else ""
        names = [config.get(key) for key in ("model_name", "dataset_version", "lora_name")]
        cells = [job.job_id, state, *(str(name or "") for name in names), progress, _local_time(job.start_time)]
        table.add_row(*map(Text, cells))
    console.print(table)


def _local_time(seconds: float | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M}"
