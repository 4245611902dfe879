"""Authentication: every path that is not public requires an API key with the right scope.

No key is required until one has been created or `TUNEYARD_REQUIRE_API_KEY` is set.
"""

import logging
import time
from collections.abc import Collection

import psutil
from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from jobs.clients.keys import ApiKeyCache, ApiKeySnapshot, KeyScope, hash_key, read_snapshot
from jobs.network.deadlines import allow, allowed_seconds
from jobs.network.hosts import FORBIDDEN, MISDIRECTED, explain, explain_origin, find_unknown_host, find_unknown_origin
from jobs.service.access import StackAccess
from jobs.settings import Settings
from jobs.stack.readiness import known_addresses
from jobs.storage.bounded_postgres import bounded_engine_for
from jobs.storage.connections import watch_database
from sft.errors import StackError

logger = logging.getLogger(__name__)

PUBLIC_PATHS = {"/", "/health", "/ready", "/docs", "/openapi.json", "/favicon.ico"}
PUBLIC_FOLDER = "/docs/"
STARTS_NOTHING = {"/metrics"}  # a scrape must not restart a stack that was stopped on purpose
READING_METHODS = ("GET", "HEAD", "OPTIONS")
CHALLENGE = {"WWW-Authenticate": "Bearer"}
LOOPBACK = ("127.", "::1", "::ffff:127.")
SCRAPE_SECONDS = 2.0  # to read the keys for a scrape, whose metrics take some seconds more while a server is down
BIND_SECONDS = 10


def read_keys(settings: Settings) -> ApiKeySnapshot:
    """Read the keys from the database, without starting the stack. Raises StackError if it is down."""
    url = str(known_addresses(settings).database_url)
    with watch_database(url):
        return read_snapshot(bounded_engine_for(url))


class Authentication:
    """ASGI middleware that checks API keys, hosts and origins. Raises HTTPException 401, 403 or 421, or StackError."""

    def __init__(
        self,
        app: ASGIApp,
        keys: ApiKeyCache,
        access: StackAccess,
        is_key_required: bool,
        allowed_hosts: Collection[str] = (),
        allowed_origins: Collection[str] = (),
    ) -> None:
        self.app = app
        self.keys = keys
        self.access = access
        self.is_key_required = is_key_required
        self.allowed_hosts = allowed_hosts
        self.allowed_origins = allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; `scope["state"]["client"]` is the owner of its key, None if none is required."""
        if scope["type"] == "http":
            scope.setdefault("state", {})["client"] = None
            self._check_host(scope)
            if not is_public(scope):
                await self._authenticate(scope)
        await self.app(scope, receive, send)

    def _check_host(self, scope: Scope) -> None:
        """While no key is required, reject requests of web pages: unknown hosts (DNS rebinding) and unknown origins."""
        if self.is_key_required or self.keys.is_known_to_be_closed:
            return
        if unknown := find_unknown_host(scope, self.allowed_hosts):
            raise HTTPException(MISDIRECTED, explain(unknown))
        if unknown := find_unknown_origin(scope, self.allowed_hosts, self.allowed_origins):
            raise HTTPException(FORBIDDEN, explain_origin(unknown, "TUNEYARD_CORS_ORIGINS"))

    async def _authenticate(self, scope: Scope) -> None:
        key = presented_key(Headers(scope=scope))
        if key is None and self.is_key_required:
            raise HTTPException(401, "An API key is required; `tuneyard keys create NAME` creates one", CHALLENGE)
        snapshot = self.keys.fresh_snapshot(key)
        if snapshot is None:
            may_start = path_below_root(scope) not in STARTS_NOTHING
            # The shared threads may all wait for the stack to start: requests that must not block use another one.
            limiter = None if may_start else CapacityLimiter(1)
            snapshot = await to_thread.run_sync(self._refresh, key, may_start, limiter=limiter)
        if snapshot.is_open and not self.is_key_required:
            return
        if key is None:
            raise HTTPException(401, "An API key is required: send it as Authorization: Bearer KEY", CHALLENGE)
        client = snapshot.clients.get(hash_key(key))
        if client is None:
            raise HTTPException(401, "This API key is unknown or revoked", CHALLENGE)
        scope["state"]["client"] = client
        needed = KeyScope.READ if scope["method"] in READING_METHODS else KeyScope.SUBMIT
        if not client.scope.includes(needed):
            raise HTTPException(403, f"This API key has scope {client.scope}; {scope['method']} needs {needed}")

    def _refresh(self, key: str | None, may_start: bool) -> ApiKeySnapshot:
        try:
            with allow(allowed_seconds() if may_start else min(SCRAPE_SECONDS, allowed_seconds())):
                return self.keys.refresh(key)
        except StackError:
            if may_start:
                self.access.open()
                return self.keys.refresh(key)
            if self.keys.last_snapshot:  # no key can be created or revoked while the database is down
                return self.keys.last_snapshot
            raise


def is_public(scope: Scope) -> bool:
    """Whether a path needs no key."""
    path = path_below_root(scope)
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER)


def path_below_root(scope: Scope) -> str:
    """The path without the prefix that a proxy has added."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path


def presented_key(headers: Headers) -> str | None:
    """The key of `Authorization: Bearer` or of `X-API-Key`."""
    scheme, _, value = headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("X-API-Key") or None


def warn_if_open_to_others(snapshot: ApiKeySnapshot, settings: Settings) -> None:
    """Warn if this process listens beyond this machine and no key is required. Waits until it listens."""
    if not snapshot.is_open or settings.require_api_key:
        return
    addresses = listening_addresses(BIND_SECONDS)
    if open_ones := [address for address in addresses if not address.startswith(LOOPBACK)]:
        logger.warning(
            "NO API KEY IS SET and the API listens on %s: anybody who can reach it can run jobs on this machine. "
            "Create a key with `tuneyard keys create NAME`, or listen on 127.0.0.1.",
            ", ".join(open_ones),
        )


def listening_addresses(wait_seconds: float) -> list[str]:
    """The addresses this process listens on; empty if there is none within `wait_seconds`."""
    deadline = time.monotonic() + wait_seconds
    while True:
        connections = psutil.Process().net_connections("tcp")
        found = sorted({f"{c.laddr.ip}" for c in connections if c.status == psutil.CONN_LISTEN})
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)
