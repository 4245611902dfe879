"""Serves Prefect and MLflow; their pages reach this service alone, under its names: `python -m jobs.stack.pages NAME`.

Prefect's page starts its analytics library, which asks its maker for a configuration, before it reads that they are
off; no setting stops that. A browser does, when the page carries a Content-Security-Policy.
"""

import argparse
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from jobs.network.connection_guard import ConnectionGuard
from jobs.network.connection_limits import limits_for, raise_descriptor_limit
from jobs.network.hosts import KnownHosts
from jobs.settings import Settings

# Everything by default from the page's own origin. Connections also to this machine by either of its names, since
# Prefect's page asks the API at 127.0.0.1 when it is opened at localhost.
POLICY = "; ".join(
    (
        "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'",
        "connect-src 'self' data: blob: http://127.0.0.1:* http://localhost:* ws://127.0.0.1:* ws://localhost:*",
        "form-action 'self'",
    )
)


class Confined:
    """An app whose pages may load from and send to no other host. Responses that are not pages are left as they are."""

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
    """Prefect's app. The list of integrations in its pages is the one that it brings, not one from the network."""
    collections: Any = importlib.import_module("prefect.server.api.collections")
    collections.KNOWN_VIEWS = dict.fromkeys(collections.KNOWN_VIEWS, "none:")  # httpx refuses it, then the file is read
    return importlib.import_module("prefect.server.api.server").create_app(final=True)


def load_mlflow() -> Any:
    """MLflow's app, as `mlflow server` serves it."""
    return importlib.import_module("mlflow.server.fastapi_app").app


APPS: dict[str, Callable[[], Any]] = {"prefect": load_prefect, "mlflow": load_mlflow}
BODY_SECONDS = 3600.0  # artifacts may be uploaded to MLflow, whose progress is not looked at
LOG_LEVELS = {"prefect": "warning", "mlflow": "info"}  # as each one's own command has it


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve one of them until stopped."""
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
