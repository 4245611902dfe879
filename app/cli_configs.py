"""`tuneyard configs`: saved configurations of a running service."""

from pathlib import Path
from typing import Annotated

import typer

from app.cli_service import JsonOption, UrlOption, connected, print_json, read_mapping

commands = typer.Typer(help="Saved configurations: save, list, show, update, delete.", no_args_is_help=True)

ConfigArgument = Annotated[str, typer.Argument(metavar="ID", help="The configuration's id.")]
FileArgument = Annotated[
    Path, typer.Argument(exists=True, dir_okay=False, help="YAML or JSON with fields of SFTConfig, some or all.")
]


@commands.command()
def save(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    file: FileArgument,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Save a configuration and print its id."""
    with connected(url) as client:
        saved = client.configs.save(name, read_mapping(file))
    if as_json:
        print_json(saved.model_dump(mode="json"))
    else:
        typer.echo(saved.config_id)


@commands.command("list")
def list_configs(as_json: JsonOption = False, url: UrlOption = None) -> None:
    """List the saved configurations, oldest first."""
    with connected(url) as client:
        configs = client.configs.list()
    if as_json:
        print_json([saved.model_dump(mode="json") for saved in configs])
        return
    for saved in configs:
        typer.echo(f"{saved.config_id}  {saved.name}")


@commands.command()
def show(
    config_id: ConfigArgument,
    versions: Annotated[bool, typer.Option("--versions", help="What it has been, version by version.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Show a saved configuration."""
    import yaml

    with connected(url) as client:
        found = client.configs.versions(config_id) if versions else [client.configs.get(config_id)]
    values = [saved.model_dump(mode="json", exclude_none=True) for saved in found]
    shown = values if versions else values[0]
    if as_json:
        print_json(shown)
    else:
        typer.echo(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), nl=False)


@commands.command()
def update(
    config_id: ConfigArgument,
    file: FileArgument,
    name: Annotated[str | None, typer.Option(help="Call it something else.")] = None,
    url: UrlOption = None,
) -> None:
    """Put another configuration in its place, as its next version."""
    with connected(url) as client:
        saved = client.configs.update(config_id, name or client.configs.get(config_id).name, read_mapping(file))
    typer.echo(f"{saved.config_id} is now at version {saved.version}")


@commands.command()
def delete(config_id: ConfigArgument, url: UrlOption = None) -> None:
    """Delete a saved configuration; jobs made from it stay."""
    with connected(url) as client:
        client.configs.delete(config_id)
    typer.echo(f"{config_id} is deleted")
