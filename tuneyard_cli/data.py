"""`tuneyard data`: files of one's own as versions of datasets that jobs name."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneyard_cli.exit import fail
from tuneyard_cli.output import open_console, print_json, print_line, print_rendered
from tuneyard_cli.service import JsonOption, UrlOption, connected
from tuneyard_cli.values import read_path

if TYPE_CHECKING:
    from tuneyard_wire.own_data import DatasetVersion, ShownRow

commands = typer.Typer(help="Datasets of your own: add, list, show, download, delete.", no_args_is_help=True)

REASONS_SHOWN = 5
DatasetArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="NAME of a dataset that was added, or NAME@VERSION.")
]


@commands.command()
def add(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A .jsonl, .json, .csv or .parquet file."),
    ],
    name: Annotated[str | None, typer.Option(help="Name of the dataset; that of the file if not given.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Add a file as a version of a dataset and print its name, NAME@VERSION.

    The file is checked: format, rows, bad rows with reasons, duplicates. The same content is the same version.
    """
    if not file.is_file():
        raise typer.BadParameter(f"{file} is not a regular file", param_hint="FILE")
    with connected(url) as client:
        added = client.datasets.add(file, name)
    if as_json:
        print_json(added.model_dump(mode="json"))
        return
    print_line(added.reference)
    describe(added, err=True)
    if not added.is_new:
        print_line("the dataset had this content before", err=True)


@commands.command("list")
def list_datasets(as_json: JsonOption = False, url: UrlOption = None) -> None:
    """List the newest version of each dataset, the one added last first."""
    with connected(url) as client:
        found = client.datasets.list()
    if as_json:
        print_json([version.model_dump(mode="json") for version in found])
    else:
        _print_table(found)


@commands.command()
def show(
    dataset: DatasetArgument,
    rows: Annotated[int, typer.Option("--rows", "-n", min=0, max=50, help="Number of rows to show.")] = 3,
    model: Annotated[str | None, typer.Option(help="Base model for which the rows are rendered.")] = None,
    template: Annotated[str | None, typer.Option(help="Chat template; the model's own if not given.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Show a dataset's versions and its first rows, with --model as the chat template writes them."""
    if template is not None and model is None:
        fail("--template needs --model: the base model whose tokenizer renders the rows")
    if model is not None and not rows:
        fail("--model is for the rows, and --rows 0 shows none; leave one of them out")
    with connected(url) as client:
        found = client.datasets.get(dataset)
        newest = found.versions[-1]
        shown = client.datasets.rows(newest.reference, rows, model, template).rows if rows else []
    if as_json:
        print_json(found.model_dump(mode="json") | {"rows": [row.model_dump(mode="json") for row in shown]})
        return
    for version in found.versions:
        print_line(f"{version.reference}  {version.created_at.astimezone():%Y-%m-%d %H:%M}  {version.filename}")
    describe(newest)
    for row in shown:
        _show_row(row)


@commands.command()
def download(
    dataset: DatasetArgument,
    file: Annotated[
        Path | None,
        typer.Argument(parser=read_path, metavar="FILE", help="A new file; named after the dataset if not given."),
    ] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Download a version's file and verify its checksum."""
    with connected(url) as client:
        version = client.datasets.get(dataset).versions[-1]
        target = file or Path(f"{version.name}{_suffix_of(version)}")
        written = client.datasets.download(version.reference, target)
    if as_json:
        print_json({"reference": version.reference, "file": str(written)})
    else:
        print_line(str(written))


@commands.command()
def delete(dataset: DatasetArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Delete a version, NAME@VERSION, or all versions, NAME. Refused while a job needs it."""
    with connected(url) as client:
        deleted = client.datasets.delete(dataset)
    if as_json:
        print_json({"deleted": deleted})
    else:
        for reference in deleted:
            print_line(f"Deleted {reference}")


def describe(version: "DatasetVersion", err: bool = False) -> None:
    """Print what the check of a file found."""
    kind = f"format {version.format}" if version.format else "no known format (set dataset_text_field)"
    counts = [f"{version.rows} rows", kind]
    counts += [f"{version.bad} bad"] if version.bad else []
    counts += [f"{version.duplicates} duplicates"] if version.duplicates else []
    print_line(f"{', '.join(counts)}; columns {', '.join(version.columns)}", err=err)
    for reason in version.reasons[:REASONS_SHOWN]:
        rows = ", ".join(map(str, reason.rows)) + (" …" if reason.count > len(reason.rows) else "")
        print_line(f"  {reason.count} bad: {reason.reason} (row {rows})", err=err)


def _suffix_of(version: "DatasetVersion") -> str:
    from tuneyard_wire.dataset_reference import find_file_suffix

    return find_file_suffix(version.filename) or ""


def _show_row(row: "ShownRow") -> None:
    console = open_console()
    console.rule(f"row {row.row}")
    if row.problem:
        print_line(row.problem)
    if row.rendered is None:
        if row.values is not None:
            print_json(row.values)
        return
    print_rendered([(part.text, part.supervised) for part in row.rendered], console)


def _print_table(found: "list[DatasetVersion]") -> None:
    from rich.table import Table
    from rich.text import Text

    from tuneyard_wire.one_line import escape

    table = Table(box=None, pad_edge=False)
    for header in ("DATASET", "FORMAT", "ROWS", "BAD", "SIZE", "ADDED", "FILE"):
        table.add_column(header, overflow="fold")
    for version in found:
        size = f"{version.bytes / 1e6:.1f} MB"
        added = f"{version.created_at.astimezone():%Y-%m-%d %H:%M}"
        cells = [version.reference, version.format or "", str(version.rows), str(version.bad), size, added]
        table.add_row(*(Text(escape(cell).replace("\t", "\\t")) for cell in [*cells, version.filename]))
    open_console().print(table)
