"""`tuneyard`: submit and follow jobs of a service, from any machine.

Commands import what they need when they run, so that `--help` is fast.
"""

import os
from typing import Annotated

import typer

from tuneyard_cli import answers, configs, data, jobs, models, plan
from tuneyard_cli.exit import EPILOG, CommandGroup
from tuneyard_cli.machine import this_machine

ENTRY_POINT_GROUP = "tuneyard.commands"
OWNER_ONLY_UMASK = 0o077


def make_app(about: str) -> typer.Typer:
    """Build the command with the subcommands that use a service over HTTP."""
    app = typer.Typer(cls=CommandGroup, help=about, epilog=EPILOG, no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_options)
    app.add_typer(jobs.commands)
    app.add_typer(plan.commands)
    app.add_typer(answers.commands)
    app.add_typer(configs.commands, name="configs", rich_help_panel=jobs.PANEL)
    app.add_typer(data.commands, name="data", rich_help_panel=jobs.PANEL)
    app.add_typer(models.commands, name="models", rich_help_panel=answers.PANEL)
    return app


def main() -> None:
    """Run the full package's command if that is installed, else the client's."""
    from importlib.metadata import entry_points

    full = next(iter(entry_points(group=ENTRY_POINT_GROUP)), None)
    app = full.load() if full else make_app("Self-hosted LoRA fine-tuning: submit jobs to a service and follow them.")
    app()


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        import importlib.metadata

        name = this_machine().distribution
        typer.echo(f"{name} {importlib.metadata.version(name)}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    os.umask(OWNER_ONLY_UMASK)  # files are readable by their owner alone, as in the service


if __name__ == "__main__":
    main()
