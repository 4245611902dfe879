"""How commands reach the service, and the options that most of them have."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

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
        with Tuneyard(url or local_url()) as client:
            yield client
    except NotAuthenticated as error:
        hint = f"{error.detail}; commands read it from TUNEYARD_API_KEY"
        raise NotAuthenticated(hint, error.status, error.code, error.request_id) from error
    except ServiceUnreachable as error:
        if url:
            raise
        raise ServiceUnreachable(f"{error.detail} Start it with `tuneyard serve`, or name one with --url") from error


def local_url() -> str:
    """Where `tuneyard serve` listens with the settings of this environment."""
    from jobs.network.proxies import bracket
    from jobs.settings import Settings

    settings = Settings()
    is_everywhere = settings.host in ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
    return f"http://{'127.0.0.1' if is_everywhere else bracket(settings.host)}:{settings.api_port}"
