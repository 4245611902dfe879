"""Commands for jobs: `tuneyard submit`, `list`, `show`, `watch`, `logs`, `download`, `cancel`, `deliveries`."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneyard_cli.exit import ExitCode
from tuneyard_cli.job_options import JobArguments, takes_job_options
from tuneyard_cli.output import open_console, print_json, print_line, print_table, print_warnings, print_yaml
from tuneyard_cli.service import JobArgument, JsonOption, UrlOption, connected
from tuneyard_cli.values import read_path
from tuneyard_wire.fields import TrainStatus

if TYPE_CHECKING:
    from tuneyard_client import Tuneyard
    from tuneyard_wire.deliveries import Delivery
    from tuneyard_wire.jobs import TrainJob

PANEL = "Jobs"

PairOption = typer.Option("--metadata", metavar="KEY=VALUE", help="Only jobs with this label; may be repeated.")

commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
@takes_job_options
def submit(
    job: JobArguments,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow the job until it ends.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Submit a job and print its id.

    Options override the file; --set overrides both. Other fields get the service's defaults: the SFT API's with
    --config or a field that only it has (base_model, dataset_name), else the Training API's.
    With --watch the exit code is 0 if the job completes and 1 if it fails or is cancelled.
    """
    submission = job.build()
    with connected(url) as client:
        submitted = submission.complete(client).send(client, job.strategy, job.strict)
        if watch or not as_json:
            print_warnings([warning.message for warning in submitted.warnings])
        if watch:
            print_line(submitted.job_id, err=as_json)
            raise typer.Exit(_watch(client, submitted.job_id, as_json))
    if as_json:
        print_json({"warnings": [], **submitted.model_dump(mode="json")})
    else:
        print_line(submitted.job_id)
        print_line(submitted.message or f"The job is {submitted.status}", err=True)


@commands.command("list", rich_help_panel=PANEL)
def list_jobs(
    status: Annotated[TrainStatus | None, typer.Option(help="Only jobs with this status.")] = None,
    model: Annotated[str | None, typer.Option(help="Only jobs with this base model.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Only jobs that train this adapter.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Only jobs on this dataset: NAME or NAME@REVISION.")] = None,
    after: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only jobs created after this ISO 8601 time.")
    ] = None,
    before: Annotated[str | None, typer.Option(metavar="TIME", help="Only jobs created before (ISO 8601).")] = None,
    metadata: Annotated[list[str] | None, PairOption] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Maximum number of jobs.")] = 20,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """List jobs, newest first."""
    from tuneyard_cli.values import read_pairs

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
def show(job: JobArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Show a job: status, configuration, progress, and the result with its warnings."""
    from tuneyard_cli.references import find_job_id
    from tuneyard_cli.watch import describe_check

    with connected(url) as client:
        shown = client.job(find_job_id(client, job))
    found = shown.model_dump(mode="json", exclude_none=not as_json)
    if as_json:
        print_json(found)
    else:  # the long config first, so that the result is printed last, just above the prompt
        if shown.result and shown.result.serving_check:
            found["result"]["serving_check"] = describe_check(shown.result.serving_check)
        head = {name: found.pop(name) for name in ("job_id", "status", "config") if name in found}
        print_yaml(head | found)


@commands.command(rich_help_panel=PANEL)
def watch(job: JobArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Follow a job until it ends. The exit code is 0 if it completes and 1 if it fails or is cancelled."""
    from tuneyard_cli.references import find_job_id

    with connected(url) as client:
        raise typer.Exit(_watch(client, find_job_id(client, job), as_json))


@commands.command(rich_help_panel=PANEL)
def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing until the job ends.")] = False,
    tail: Annotated[int | None, typer.Option("--tail", "-n", min=0, help="Number of lines from the end.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per line of the log.")] = False,
    url: UrlOption = None,
) -> None:
    """Print a job's log."""
    from tuneyard_cli.references import find_job_id

    with connected(url) as client:
        for line in client.logs(find_job_id(client, job), follow=follow, tail=tail):
            if as_json:
                typer.echo(json.dumps(line.model_dump(mode="json")))  # in ASCII
            else:
                print_line(f"{line.timestamp.astimezone():%Y-%m-%d %H:%M:%S}  {line.level:<7}  {line.message}")


@commands.command(rich_help_panel=PANEL)
def download(
    job: JobArgument,
    folder: Annotated[Path, typer.Argument(parser=read_path, metavar="FOLDER", help="A new or empty folder.")],
    merged: Annotated[bool, typer.Option("--merged", help="The merged model of a job with save_merged_model.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Download a completed job's adapter into a folder and verify its checksum."""
    from tuneyard_cli.references import find_job_id

    with connected(url) as client:
        job_id = find_job_id(client, job)
        downloaded = client.download_adapter(job_id, folder, "merged" if merged else "adapter")
    if as_json:
        print_json({"job_id": job_id, "folder": str(downloaded)})
    else:
        print_line(str(downloaded))


@commands.command(rich_help_panel=PANEL)
def cancel(job: JobArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Cancel a queued or running job."""
    from tuneyard_cli.references import find_job_id

    with connected(url) as client:
        response = client.cancel(find_job_id(client, job))
    if as_json:
        print_json(response.model_dump(mode="json"))
    else:
        print_line(response.message)


@commands.command(rich_help_panel=PANEL)
def deliveries(
    job: JobArgument,
    resend: Annotated[str | None, typer.Option(metavar="DELIVERY", help="Send this delivery again.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """List a job's webhook deliveries with every attempt, or send one again."""
    from tuneyard_cli.references import find_delivery_id, find_job_id

    with connected(url) as client:
        job_id = find_job_id(client, job)
        if resend is not None:
            found = [client.resend(job_id, find_delivery_id(client, job_id, resend))]
        else:
            found = client.deliveries(job_id)
    if as_json:
        print_json([delivery.model_dump(mode="json") for delivery in found])
        return
    if not found:
        print_line("The job has no deliveries: it has no webhook_url, or no event for it yet.", err=True)
    for delivery in found:
        due = f", next attempt {delivery.next_attempt_at.astimezone():%H:%M:%S}" if delivery.next_attempt_at else ""
        print_line(f"{delivery.delivery_id}  {_name_event(delivery):<10}  {delivery.state}{due}  {delivery.url}")
        for attempt in delivery.attempts:
            outcome = attempt.error or f"HTTP {attempt.status_code}"
            print_line(f"    {attempt.time.astimezone():%Y-%m-%d %H:%M:%S}  {outcome}")


def _name_event(delivery: "Delivery") -> str:
    return delivery.status if delivery.event == "ended" else delivery.event


def _watch(client: "Tuneyard", job_id: str, as_json: bool) -> ExitCode:
    """Follow a job until it ends; returns the exit code."""
    from tuneyard_cli.watch import describe_check, watch_job

    try:
        job = watch_job(client, job_id, open_console(stderr=as_json))
    except KeyboardInterrupt:
        print_line(f"The job continues: `tuneyard watch {job_id}`, `tuneyard cancel {job_id}`", err=True)
        return ExitCode.INTERRUPTED
    if as_json:
        print_json(job.model_dump(mode="json"))
    elif job.status == "completed":
        print_warnings(job.result.warnings if job.result else [])
        if job.result and job.result.serving_check:
            print_line(f"serving check: {describe_check(job.result.serving_check)}")
        print_line(f"completed: {job.output_path}")
    else:
        print_line(f"tuneyard: job {job_id} {job.status}{f': {job.error}' if job.error else ''}", err=True)
    return ExitCode.OK if job.status == "completed" else ExitCode.JOB_FAILED


def _print_table(jobs: "list[TrainJob]") -> None:
    rows = []
    for job in jobs:
        config = job.config
        state = f"{job.status} ({job.queue_position})" if job.queue_position is not None else job.status
        percent = job.progress.percent if job.progress else None
        progress = "" if percent is None else f"{percent:.0f} %"
        names = [config.get(key) for key in ("model_name", "dataset_version", "lora_name")]
        began = None if job.status in ("created", "queued") else job.start_time
        rows.append([job.job_id, state, *(str(name or "") for name in names), progress, _local_time(began)])
    print_table(("ID", "STATUS", "MODEL", "DATASET", "ADAPTER", "PROGRESS", "STARTED"), rows)


def _local_time(seconds: float | None) -> str:
    return "" if not seconds else f"{datetime.fromtimestamp(seconds, UTC).astimezone():%Y-%m-%d %H:%M}"
