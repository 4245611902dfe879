"""`python -m jobs.stack.pages NAME`: serves Prefect or MLflow, with pages that can't contact any other host.

Prefect's page loads its analytics library, which requests a configuration from its vendor, before it reads that
analytics are off; no setting prevents that. A Content-Security-Policy makes the browser block it.
"""

import argparse
import functools
import importlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.network.connection_guard import ConnectionGuard
from jobs.network.connection_limits import limits_for, raise_descriptor_limit
from jobs.network.hosts import KnownHosts
from jobs.settings import Settings

# Default: the page's own origin. Connections also to this machine under both names, as Prefect's page calls the API at
# 127.0.0.1 when it is opened at localhost.
POLICY = "; ".join(
    (
        "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'",
        "connect-src 'self' data: blob: http://127.0.0.1:* http://localhost:* ws://127.0.0.1:* ws://localhost:*",
        "form-action 'self'",
    )
)


class Confined:
    """ASGI middleware that adds the policy to HTML responses."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("Content-Security-Policy", POLICY)
            await send(message)

        await self._app(scope, receive, send_with_policy if scope["type"] == "http" else send)


def load_prefect() -> Any:
    """Prefect's app, with its bundled list of integrations instead of one from the network."""
    check_schemas_once()
    collections: Any = importlib.import_module("prefect.server.api.collections")
    collections.KNOWN_VIEWS = dict.fromkeys(collections.KNOWN_VIEWS, "none:")  # not a URL, so the bundled file is read
    return importlib.import_module("prefect.server.api.server").create_app(final=True)


def check_schemas_once() -> None:
    """Have Prefect check each JSON schema once against the metaschema of JSON Schema, not anew for each run.

    A create checks the schema of the work pool's job variables twice, which is two thirds of its time. The variables
    are still checked against the schema for each run.
    """
    validation: Any = importlib.import_module("prefect.utilities.schema_tools.validation")
    validator = validation._VALIDATOR
    check = validator.check_schema

    @functools.lru_cache(SCHEMAS_KEPT)
    def check_text(schema: str) -> None:
        check(json.loads(schema))

    def check_once(schema: Any, format_checker: Any = None) -> None:  # there is one format checker
        """`check_schema`, remembering valid schemas; an invalid one raises each time."""
        try:
            text = json.dumps(schema, sort_keys=True)
        except (TypeError, ValueError):  # no JSON
            check(schema)
        else:
            check_text(text)

    validator.check_schema = check_once


def load_mlflow() -> Any:
    """MLflow's app, as `mlflow server` runs it."""
    return importlib.import_module("mlflow.server.fastapi_app").app


APPS: dict[str, Callable[[], Any]] = {"prefect": load_prefect, "mlflow": load_mlflow}
BODY_SECONDS = 3600.0  # for uploads of artifacts to MLflow, whose progress is not checked
SCHEMAS_KEPT = 256
LOG_LEVELS = {"prefect": "warning", "mlflow": "info"}  # as in each one's own command


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve Prefect or MLflow until stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(APPS))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args(arguments)
    known = KnownHosts(Confined(APPS[options.name]()), Settings().allowed_hosts)
    app = ConnectionGuard(known, limits_for(raise_descriptor_limit(), None, BODY_SECONDS))
    level = LOG_LEVELS[options.name]
    uvicorn.run(app, host=options.host, port=options.port, log_level=level, access_log=False)


if __name__ == "__main__":
    main()
