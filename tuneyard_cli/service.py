"""Connect commands to the service; options that most commands share."""

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
        help="URL of the service; default: the one on this machine. The API key is read from TUNEYARD_API_KEY.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value; errors are JSON on stderr.")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="Id of a job, or its first 4 or more characters.")]


@contextmanager
def connected(url: str | None) -> "Iterator[Tuneyard]":
    """Yield a client of the service. Adds hints to NotAuthenticated and ServiceUnreachable."""
    from tuneyard_client import Tuneyard
    from tuneyard_client.errors import NotAuthenticated, ServiceUnreachable

    try:
        with Tuneyard(this_machine().url() if url is None else url) as client:
            yield client
    except NotAuthenticated as error:
        hint = f"{error.detail}; commands read it from TUNEYARD_API_KEY"
        raise NotAuthenticated(hint, error.status, error.code, error.request_id) from error
    except ServiceUnreachable as error:
        if url:
            raise
        raise ServiceUnreachable(f"{error.detail} {this_machine().start_hint}") from error
