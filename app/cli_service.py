"""What every command has in common: how the service is reached, how errors and answers are shown."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sft.errors import InvalidConfig, TuneyardError

if TYPE_CHECKING:
    from pathlib import Path

    from tuneyard_client import Tuneyard

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="TUNEYARD_URL",
        help="Address of the service; the one on this machine if not given. An API key is read from TUNEYARD_API_KEY.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]


@contextmanager
def connected(url: str | None) -> "Iterator[Tuneyard]":
    """A client of the service; what goes wrong ends the command with one line and exit code 1."""
    from tuneyard_client import Tuneyard

    with clear_errors(), Tuneyard(url or local_url(), os.environ.get("TUNEYARD_API_KEY")) as client:
        yield client


def local_url() -> str:
    """Where `tuneyard serve` listens with the settings of this environment."""
    from jobs.settings import Settings

    return f"http://127.0.0.1:{Settings().api_port}"


@contextmanager
def clear_errors() -> Iterator[None]:
    """Errors of the project's tree as one line on stderr and exit code 1."""
    try:
        yield
    except TuneyardError as error:
        request_id = getattr(error, "request_id", None)
        note = f" (request {request_id})" if request_id and error.status >= 500 else ""
        typer.echo(f"tuneyard: {'; '.join(str(error).splitlines())}{note}", err=True)
        raise typer.Exit(1) from error


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    typer.echo(json.dumps(value, indent=2, default=str))


def read_pairs(option: str, pairs: list[str]) -> dict[str, str]:
    """`key=value` options. Ends the command as wrong usage when one is not."""
    for pair in pairs:
        if not pair.partition("=")[0] or "=" not in pair:
            raise typer.BadParameter(f"{pair!r} must be key=value", param_hint=option)
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}


def read_mapping(path: "Path") -> dict[str, Any]:
    """A YAML or JSON file that holds fields. Raises InvalidConfig."""
    import yaml

    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InvalidConfig(f"{path} can't be read as YAML: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise InvalidConfig(f"{path} must hold a mapping of fields, got {type(values).__name__}")
    return values


def load_yaml(text: str) -> Any:
    """A YAML document. `1e-4` is a number, as in JSON and YAML 1.2; to PyYAML alone it would be text."""
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader, with one more way to write a number."""

    number = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, [*"-+0123456789"])
    return yaml.load(text, Loader)  # noqa: S506 - which is a safe one
