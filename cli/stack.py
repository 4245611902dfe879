"""`tuneyard up`, `down`, `status`, `serve`, `doctor`: the local stack, and the REST API in the foreground."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from tuneyard_cli.output import print_json, print_line
from tuneyard_cli.service import JsonOption

if TYPE_CHECKING:
    from jobs.settings import Settings
    from jobs.stack.local import PartStatus

SHUTDOWN_SECONDS = 5  # how long a stop waits for open streams

PANEL = "The service on this machine"

DebugOption = Annotated[
    bool, typer.Option("--debug", help="Write tracebacks to the logs of jobs. No effect if the stack is running.")
]

commands = typer.Typer()


@commands.command(rich_help_panel=PANEL)
def up(debug: DebugOption = False, as_json: JsonOption = False) -> None:
    """Start the local stack in the background. Restores its missing parts and what was deleted in Prefect."""
    from jobs.stack import local as stack

    settings = stack.ensure_up(read_settings(debug))
    restored = stack.repair(settings)
    if as_json:
        print_json({"prefect_ui": _prefect_ui(settings), "mlflow_ui": settings.mlflow_tracking_uri})
    else:
        if restored:
            print_line(f"Restored what was deleted in Prefect: {', '.join(restored)}")
        show_addresses(settings)


@commands.command(rich_help_panel=PANEL)
def down(as_json: JsonOption = False) -> None:
    """Stop the local stack. A running job saves a checkpoint and resumes after the next `up`."""
    from jobs.settings import Settings
    from jobs.stack import local as stack

    was_running = stack.down(Settings())
    if as_json:
        print_json({"stopped": was_running})
    else:
        typer.echo("Stopped." if was_running else "Nothing was running.")


@commands.command(rich_help_panel=PANEL)
def status(as_json: JsonOption = False) -> None:
    """Show the parts of the local stack, their addresses and log files."""
    from jobs.settings import Settings
    from jobs.stack import local as stack
    from jobs.stack.readiness import check_parts

    settings = Settings()
    found = stack.status(settings)
    if as_json:
        print_json([asdict(part) for part in found])
        return
    for part in found:
        print_line(f"{part.name:<10} {part.state:<9} {describe_process(part):<26} {part.address}")
        if part.log_path is not None:
            print_line(f"{'':<10} {part.log_path}")
    if stack.is_up(settings) and not (check := check_parts(settings)["work_pool"]).ok:
        print_line(f"Jobs wait: {check.detail}")


@commands.command(rich_help_panel=PANEL)
def serve(debug: DebugOption = False) -> None:
    """Serve the REST API in the foreground until Ctrl-C, with the local stack.

    A stack that this command started is stopped with it; one that was running keeps running.
    """
    import uvicorn

    from jobs.stack import local as stack
    from jobs.stack import parts

    settings = read_settings(debug)
    with _stopped_by_signals() as stop_requested:
        was_up = stack.is_up(settings)
        parts.check_port("The API", settings.api_port, "TUNEYARD_API_PORT", settings.host)
        if not was_up:
            typer.echo("Starting the local stack ...")
        try:
            addresses = stack.ensure_up(settings)
            if stop_requested.is_set():
                return
            show_addresses(addresses, api=f"http://{settings.host}:{settings.api_port}")
            uvicorn.run(
                "app.main:app",
                host=settings.host,
                port=settings.api_port,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            )
        finally:
            if not was_up and not settings.is_external:
                _ignore_signals()
                typer.echo("Stopping the local stack ...")
                stack.down(settings)


@commands.command(rich_help_panel=PANEL)
def doctor(as_json: JsonOption = False) -> None:
    """Check this machine for problems and suggest fixes. Exits 1 if any are found."""
    from cli import doctor

    doctor.doctor(as_json)


def show_addresses(settings: "Settings", api: str | None = None) -> None:
    """Print the addresses of the API and the web pages."""
    from jobs.engine.credentials import profile_path

    if api:
        typer.echo(f"API         {api}  (documentation at {api}/docs)")
    password = f"  (password in {profile_path(settings.home)})" if settings.prefect_auth_string else ""
    typer.echo(f"Prefect UI  {_prefect_ui(settings)}{password}")
    typer.echo(f"MLflow UI   {settings.mlflow_tracking_uri}")


def _prefect_ui(settings: "Settings") -> str:
    return str(settings.prefect_api_url).removesuffix("/api")


def describe_process(part: "PartStatus") -> str:
    """Format `pid 12, up 0:03:20`; empty for a part that is not running."""
    if part.pid is None or part.uptime_seconds is None:
        return ""
    minutes, seconds = divmod(int(part.uptime_seconds), 60)
    return f"pid {part.pid}, up {minutes // 60}:{minutes % 60:02}:{seconds:02}"


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def read_settings(debug: bool) -> "Settings":
    """Read the settings. `debug` has jobs write tracebacks; it warns if the stack is running without that."""
    from jobs.settings import Settings
    from jobs.stack import local as stack

    if not debug:
        return Settings()
    os.environ["TUNEYARD_DEBUG"] = "true"
    settings = Settings()
    if stack.is_up(settings):
        typer.echo("The stack is running, so --debug has no effect; run `tuneyard down` first.", err=True)
    return settings


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """End the block in order, and the command with exit code 0, on a stop signal.

    Python drops what a handler raises while a destructor runs, so the yielded event is set too.
    """
    requested = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        requested.set()
        raise typer.Exit(0)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    """Ignore a second Ctrl-C, which would leave half of the stack running."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
