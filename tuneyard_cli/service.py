"""How commands reach the service, and the options that most of them have."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from tuneyard_cli.machine import this_machine

if TYPE_CHECKING:
    from tuneyard_client import Tuneyard

UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="TUNEYARD_URL",
        help="URL of the service; default: the one on this machine. An API key is read from TUNEYARD_API_KEY.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value; errors are JSON on stderr.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, or its first characters (4 or more).")]


@contextmanager
def connected(url: str | None) -> "Iterator[Tuneyard]":
    """A client of the service."""
    from tuneyard_client import Tuneyard
    from tuneyard_client.errors import NotAuthenticated, ServiceUnreachable

    try:
        with Tuneyard(url or this_machine().url()) as client:
            yield client
    except NotAuthenticated as error:
        hint = f"{error.detail}; commands read it from TUNEYARD_API_KEY"
        raise NotAuthenticated(hint, error.status, error.code, error.request_id) from error
    except ServiceUnreachable as error:
        if url:
            raise
        raise ServiceUnreachable(f"{error.detail} {this_machine().start_hint}") from error
