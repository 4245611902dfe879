"""`tuneyard`: jobs from the command line, and the service they run on.

What a command needs is imported when it runs, so that `--help` answers at once.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli import configs as cli_configs
from cli import jobs as cli_jobs
from cli import plan as cli_plan
from cli import stack as cli_stack
from cli.exit import EPILOG, CommandGroup
from jobs.privacy import keep_private

main = typer.Typer(
    cls=CommandGroup,
    help="Self-hosted LoRA fine-tuning: submit jobs and follow them, and run the service they are submitted to.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


class KeysGroup(TyperGroup):
    """`tuneyard keys`, whose commands are imported on first use: they need the database."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of its commands."""
        return list(_load_keys().commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One of its commands."""
        return _load_keys().commands.get(cmd_name)


def _load_keys() -> Any:
    from cli.keys import keys_app

    return typer.main.get_command(keys_app)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        import importlib.metadata

        typer.echo(f"tuneyard {importlib.metadata.version('tuneyard')}")
        raise typer.Exit


@main.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    keep_private()


main.add_typer(cli_jobs.commands)
main.add_typer(cli_plan.commands)
main.add_typer(cli_configs.commands, name="configs", rich_help_panel=cli_jobs.PANEL)
main.add_typer(cli_stack.commands)
main.add_typer(
    typer.Typer(
        cls=KeysGroup,
        help="API keys: create, list, revoke. Creating the first key turns authentication on, permanently.",
    ),
    name="keys",
    no_args_is_help=True,
    rich_help_panel=cli_stack.PANEL,
)


if __name__ == "__main__":
    main()
