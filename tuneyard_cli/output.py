"""What commands print: JSON, YAML and tables, with nothing in them that moves a cursor or turns the direction."""

import json
from typing import TYPE_CHECKING, Any

import typer

from tuneyard_wire.one_line import escape

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 180  # columns of a table that goes into a file or a pipe


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    typer.echo(json.dumps(value, indent=2, default=str))


def print_line(text: str, err: bool = False) -> None:
    """One line, whatever the text holds."""
    typer.echo(escape(text), err=err)


def print_warnings(messages: list[str]) -> None:
    """On stderr, one line each."""
    for message in messages:
        print_line(f"warning: {message}", err=True)


def print_yaml(value: Any) -> None:
    """YAML on stdout; where text in it could mislead a terminal, everything but ASCII is escaped."""
    import yaml

    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    if escape_lines(text) != text:
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=False)
    typer.echo(text, nl=False)


def escape_lines(text: str) -> str:
    """Text of several lines, its other control characters escaped."""
    return "\n".join(map(escape, text.split("\n")))


def open_console(stderr: bool = False) -> "Console":
    """A console for tables and progress: plain and wide where no terminal reads it."""
    from rich.console import Console

    class OutputConsole(Console):
        """Leaves a closed pipe to the command's end."""

        def on_broken_pipe(self) -> None:
            raise

    console = OutputConsole(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    return console
