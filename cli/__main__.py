"""`tuneyard` with all commands: those of `tuneyard_cli`, and those that run the service.

Commands import what they need when they run, so that `--help` is fast.
"""

from typing import Any

import typer
from typer.core import TyperGroup

from cli import deploy as cli_deploy
from cli import export as cli_export
from cli import stack as cli_stack
from cli import trainer_role as cli_trainer_role
from cli.machine import ServiceMachine
from tuneyard_cli.__main__ import make_app
from tuneyard_cli.machine import use_machine

use_machine(ServiceMachine())
main = make_app("Self-hosted LoRA fine-tuning: submit and follow jobs, and run the service.")


class KeysGroup(TyperGroup):
    """`tuneyard keys`, whose commands are imported on first use: they need the database."""

    def list_commands(self, ctx: Any) -> list[str]:
        """List the names of the commands."""
        return list(_load_keys().commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Get a command; None if there is none of this name."""
        return _load_keys().commands.get(cmd_name)


def _load_keys() -> Any:
    from cli.keys import keys_app

    return typer.main.get_command(keys_app)


main.add_typer(cli_stack.commands)
main.add_typer(cli_deploy.commands)
main.add_typer(cli_export.commands)
main.add_typer(cli_trainer_role.commands)
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
