"""Print JSON, YAML and tables, with control characters and text-direction marks escaped."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from tuneyard_wire.one_line import escape

if TYPE_CHECKING:
    from rich.console import Console

FILE_WIDTH = 180  # columns of a table written to a file or a pipe
INDENT = "  "


def print_json(value: Any) -> None:
    """Print a JSON value to stdout."""
    typer.echo(json.dumps(value, indent=2, default=str))


def print_line(text: str, err: bool = False) -> None:
    """Print text on one line, its line breaks escaped."""
    typer.echo(escape(text), err=err)


def print_warnings(messages: list[str]) -> None:
    """Print warnings to stderr, one line each."""
    for message in messages:
        print_line(f"warning: {message}", err=True)


def print_yaml(value: Any) -> None:
    """Print YAML to stdout; all but ASCII is escaped if it holds characters that could mislead a terminal."""
    import yaml

    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    if escape_lines(text) != text:
        text = yaml.safe_dump(value, sort_keys=False, allow_unicode=False)
    typer.echo(text, nl=False)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table to stdout, whose first column is not wrapped."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold", no_wrap=header == headers[0])
    for row in rows:
        table.add_row(*(Text(escape(cell).replace("\t", "\\t")) for cell in row))
    open_console().print(table)


def print_rendered(parts: Iterable[tuple[str, bool]], console: "Console | None" = None) -> None:
    """Print a rendered row to stdout, each of its lines indented; parts with True are supervised, and marked."""
    from rich.text import Text

    text = Text(INDENT)
    for part, is_supervised in parts:
        shown = escape_lines(part).replace("\n", f"\n{INDENT}")
        text.append(f"»{shown}«" if is_supervised else shown, style="bold green" if is_supervised else "")
    (console or open_console()).print(text, soft_wrap=True)


def escape_lines(text: str) -> str:
    """Escape control characters other than line breaks."""
    return "\n".join(map(escape, text.split("\n")))


def open_console(stderr: bool = False) -> "Console":
    """Open a console for tables and progress: FILE_WIDTH wide if it is not a terminal."""
    from rich.console import Console

    class OutputConsole(Console):
        """Raises BrokenPipeError, which rich would handle itself; CommandGroup does."""

        def on_broken_pipe(self) -> None:
            raise

    console = OutputConsole(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console
