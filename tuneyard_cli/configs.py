"""`tuneyard configs`: saved configurations of a running service."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuneyard_cli.output import print_json, print_line, print_yaml
from tuneyard_cli.service import JsonOption, UrlOption, connected

if TYPE_CHECKING:
    from tuneyard_wire.configs import SavedConfig

commands = typer.Typer(help="Saved configurations: save, list, show, update, delete.", no_args_is_help=True)

ConfigArgument = Annotated[
    str,
    typer.Argument(metavar="CONFIG", help="Id of a configuration, its first 4 or more characters, or a name."),
]
FileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", exists=True, dir_okay=False, help="YAML or JSON file with some or all fields of SFTConfig."
    ),
]


@commands.command()
def save(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the configuration.")],
    file: FileArgument,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Save a configuration and print its id."""
    from tuneyard_cli.values import read_mapping

    values = read_mapping(file)
    with connected(url) as client:
        saved = client.configs.save(name, values)
    if as_json:
        print_json(_plain(saved))
    else:
        print_line(saved.config_id)


@commands.command("list")
def list_configs(as_json: JsonOption = False, url: UrlOption = None) -> None:
    """List saved configurations, oldest first."""
    with connected(url) as client:
        configs = client.configs.list()
    if as_json:
        print_json([_plain(saved) for saved in configs])
        return
    for saved in configs:
        print_line(f"{saved.config_id}  {saved.name}")


@commands.command()
def show(
    config: ConfigArgument,
    versions: Annotated[bool, typer.Option("--versions", help="Show every version.")] = False,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Show a saved configuration."""
    from tuneyard_cli.references import find_config_id

    with connected(url) as client:
        config_id = find_config_id(client, config)
        found = client.configs.versions(config_id) if versions else [client.configs.get(config_id)]
    values = [saved.model_dump(mode="json", exclude_none=True) for saved in found]
    (print_json if as_json else print_yaml)(values if versions else values[0])


@commands.command()
def update(
    config: ConfigArgument,
    file: FileArgument,
    name: Annotated[str | None, typer.Option(help="New name.")] = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Save a new version of a configuration."""
    from tuneyard_cli.references import find_config_id
    from tuneyard_cli.values import read_mapping

    values = read_mapping(file)
    with connected(url) as client:
        config_id = find_config_id(client, config)
        kept = client.configs.get(config_id).name if name is None else name
        saved = client.configs.update(config_id, kept, values)
    if as_json:
        print_json(_plain(saved))
    else:
        print_line(f"{saved.config_id} is now at version {saved.version}")


@commands.command()
def delete(config: ConfigArgument, as_json: JsonOption = False, url: UrlOption = None) -> None:
    """Delete a saved configuration. Jobs created from it are kept."""
    from tuneyard_cli.references import find_config_id

    with connected(url) as client:
        config_id = find_config_id(client, config)
        client.configs.delete(config_id)
    if as_json:
        print_json({"config_id": config_id, "deleted": True})
    else:
        print_line(f"Deleted {config_id}")


def _plain(saved: "SavedConfig") -> dict[str, Any]:
    return saved.model_dump(mode="json")
