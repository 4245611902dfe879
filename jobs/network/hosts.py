"""Checks the Host and Origin of requests, against DNS rebinding and requests forged by web pages.

A server accepts the names of this machine, the address it was reached at, and configured names. A web page whose name
resolves to 127.0.0.1 (DNS rebinding) has the same origin as a server there, and could read and send anything unless
the server checks the `Host`. A page under its own name could too if the server allows every origin, as Prefect does,
and can always open web sockets and send forms, so the `Origin`, which browsers send with all of these, is checked too.
"""

import re
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tuneyard_wire.loopback import is_on_this_machine

SETTING = "TUNEYARD_ALLOWED_HOSTS"
ANY = "*"
MISDIRECTED, FORBIDDEN = 421, 403
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")
_SCHEME = re.compile(r"https?://")


def find_unknown_host(scope: Scope, allowed: Collection[str]) -> str | None:
    """The Host of a request if this server does not accept it; None if it does, or the request has none."""
    for given in Headers(scope=scope).getlist("host"):
        if ANY not in allowed and not _is_known(given, _names(scope, allowed)):
            return given
    return None


def find_unknown_origin(scope: Scope, allowed: Collection[str], origins: Collection[str] = ()) -> str | None:
    """The Origin of a request if pages from there may not send it; None if they may, or no page sent it.

    Args:
        origins: further allowed origins, as browsers spell them.
    """
    for given in Headers(scope=scope).getlist("origin"):
        if ANY in allowed or ANY in origins or given in origins:
            continue
        host = _SCHEME.sub("", given, count=1)
        if host == given or not _is_known(host, _names(scope, allowed)):
            return given
    return None


def _names(scope: Scope, allowed: Collection[str]) -> set[str | None]:
    server = scope.get("server")
    return {_plain(str(server[0])) if server else None, *map(_plain, allowed)}


def _is_known(given: str, names: Collection[str | None]) -> bool:
    match = _HOST.fullmatch(given)
    return match is not None and (_plain(match[1]) in names or is_on_this_machine(f"http://{match[1]}"))


def explain(host: str) -> str:
    """The message for an unknown Host."""
    return f"this service does not accept the host name {ascii(host)[:200]}; add it to {SETTING}, or use 127.0.0.1"


def explain_origin(origin: str, setting: str = SETTING) -> str:
    """The message for a page of an origin that is not allowed."""
    return f"pages of {ascii(origin)[:200]} may not use this service; see {setting}"


def _plain(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


class KnownHosts:
    """ASGI middleware: requests with an unknown Host get 421, those of other origins 403; web sockets are closed."""

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app = app
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        refusal = self._refuse(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await refusal(scope, receive, send)
        else:
            closing: Any = {"type": "websocket.close", "code": 1008, "reason": "unknown host or origin"}
            await send(closing)

    def _refuse(self, scope: Scope) -> PlainTextResponse | None:
        if unknown := find_unknown_host(scope, self._allowed):
            return PlainTextResponse(explain(unknown), MISDIRECTED)
        if unknown := find_unknown_origin(scope, self._allowed):
            return PlainTextResponse(explain_origin(unknown), FORBIDDEN)
        return None
