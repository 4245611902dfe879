"""`tuneyard models`: the base models of a service."""

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tuneyard_cli.exit import fail
from tuneyard_cli.output import print_json, print_line, print_table, print_yaml
from tuneyard_cli.service import JsonOption, UrlOption, connected
from tuneyard_cli.values import read_path

if TYPE_CHECKING:
    from tuneyard_wire.base_models import Model

commands = typer.Typer(help="Base models: add a folder, list, show, delete.", no_args_is_help=True)

ModelArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of a base model: ORG/NAME.")]
BILLION, GB = 1e9, 1e9


@commands.command()
def add(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=read_path, metavar="FOLDER", help="A folder with config.json, *.safetensors and a tokenizer."
        ),
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="[ORG/]NAME", help="Default: local/ and the folder's own name.")
    ] = None,
    copy: Annotated[bool, typer.Option("--copy", help="Copy the files, on the service's machine.")] = False,
    link: Annotated[
        bool,
        typer.Option(
            "--link", help="Link the folder, on the service's machine; it must be in TUNEYARD_ALLOWED_MODEL_ROOTS."
        ),
    ] = False,
    here: Annotated[bool, typer.Option("--here", help="Add it on this machine, without a running service.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Add the base model in a folder and print its name.

    On the service's machine it is linked, if it is in an allowed root, or copied; to any other service it is uploaded.
    An interrupted upload continues with the same command.
    """
    from tuneyard_cli.model_folders import add_model

    if copy and link:
        fail("--copy and --link exclude each other; give one")
    with nullcontext() if here else connected(url) as client:
        added = add_model(client, folder, name, "copy" if copy else "link" if link else "auto")
    added.tell()
    if as_json:
        print_json(added.model.model_dump(mode="json"))
    else:
        print_line(added.model.name)


@commands.command("list")
def list_models(as_json: JsonOption = False, url: UrlOption = None) -> None:
    """List the base models in the service's model root."""
    with connected(url) as client:
        models = client.base_models.list()
    if as_json:
        print_json([model.model_dump(mode="json") for model in models])
        return
    headers = ("NAME", "ARCHITECTURE", "PARAMETERS", "DTYPE", "POSITIONS", "TEMPLATE", "GB", "PROBLEM")
    print_table(headers, map(_row, models))


@commands.command()
def show(model: ModelArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Show a base model: architecture, parameters, chat template, size, place, and what keeps it from being trained."""
    with connected(url) as client:
        found = client.base_models.get(model).model_dump(mode="json", exclude_none=not as_json)
    (print_json if as_json else print_yaml)(found)


@commands.command()
def delete(model: ModelArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Delete a base model. Refused while a job needs it. Of a linked one only the link is deleted."""
    with connected(url) as client:
        client.base_models.delete(model)
    if as_json:
        print_json({"name": model, "deleted": True})
    else:
        print_line(f"Deleted {model}")


def _row(model: "Model") -> list[str]:
    return [
        model.name,
        model.architecture or "",
        "" if model.parameters is None else f"{model.parameters / BILLION:.3g} B",
        model.dtype or "",
        str(model.positions or ""),
        "auto" if model.has_chat_template else "",
        f"{model.bytes / GB:.2f}",
        model.problem or "",
    ]
