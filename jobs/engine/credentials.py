"""Credentials for Prefect's API: the local server's password and CSRF token.

Once API keys are in use, the local server requires a password, and a CSRF token against forged requests of web pages.
Both settings are in a private Prefect profile, which its server, workers and command line read.
"""

import os
import secrets
import tomllib
from base64 import b64encode
from collections.abc import Generator
from pathlib import Path
from uuid import uuid4

import httpx

from jobs.network.bounded_http import bound
from jobs.settings import Settings
from tuneyard_wire.loopback import is_on_this_machine

USER = "tuneyard"
TIMEOUT_SECONDS = 30.0


class PrefectAuth(httpx.Auth):
    """Sends the credentials with each request, and a CSRF token once the server requires one."""

    requires_response_body = True

    def __init__(self, api_url: str, credentials: dict[str, str]) -> None:
        self._token_url = f"{api_url.rstrip('/')}/csrf-token"
        self._credentials = credentials
        self._client_id = str(uuid4())
        self._token: dict[str, str] = {}

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        """Send the request, and repeat it with a new token if the server asks for one or rejects it."""
        request.headers.update(self._credentials | self._token)
        response = yield request
        if response.status_code != httpx.codes.FORBIDDEN or "CSRF token" not in response.text:
            return
        wanted = {"client": self._client_id}
        token_response = yield httpx.Request("GET", self._token_url, params=wanted, headers=self._credentials)
        if token_response.is_success:
            self._token = {"Prefect-Csrf-Token": token_response.json()["token"], "Prefect-Csrf-Client": self._client_id}
            request.headers.update(self._token)
            yield request


def open_client(settings: Settings, timeout_seconds: float = TIMEOUT_SECONDS) -> httpx.Client:
    """A plain HTTP client for the Prefect API in the settings; a local server is called without a proxy."""
    api_url = str(settings.prefect_api_url)
    auth = PrefectAuth(api_url, find_credentials(settings))
    by_proxy = not is_on_this_machine(api_url)
    return bound(httpx.Client(base_url=api_url, timeout=timeout_seconds, trust_env=by_proxy, auth=auth))


def find_credentials(settings: Settings) -> dict[str, str]:
    """The authorization header: the local server's password, or the credentials in Prefect's own variables."""
    if words := find_password(settings):
        return {"Authorization": f"Basic {b64encode(words.encode()).decode()}"}
    if key := os.environ.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    return {}


def find_password(settings: Settings) -> str | None:
    """`user:password` of the Prefect server in the settings, in the form of PREFECT_API_AUTH_STRING."""
    profile = _read_profile(settings.home)
    if profile.get("PREFECT_API_URL") == settings.prefect_api_url:
        return profile["PREFECT_API_AUTH_STRING"]
    return settings.prefect_auth_string.get_secret_value() if settings.prefect_auth_string else None


def guard_server(settings: Settings, is_needed: bool) -> None:
    """Write the profile so that the local Prefect server requires a password on its next start, or none.

    Args:
        settings: with the address of the server; an existing password is kept.
    """
    path = profile_path(settings.home)
    if not is_needed:
        path.unlink(missing_ok=True)
        return
    words = _read_profile(settings.home).get("PREFECT_API_AUTH_STRING") or f"{USER}:{secrets.token_urlsafe(24)}"
    values = {
        "PREFECT_API_URL": str(settings.prefect_api_url),
        "PREFECT_API_AUTH_STRING": words,
        "PREFECT_SERVER_API_AUTH_STRING": words,
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    }
    lines = [f'active = "{USER}"', "", f"[profiles.{USER}]", *(f'{name} = "{value}"' for name, value in values.items())]
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    fresh.write_text("\n".join(lines) + "\n", encoding="utf-8")
    fresh.rename(path)


def profile_path(home: Path) -> Path:
    """Path of the stack's Prefect profile; the file is absent while no password is required."""
    return home / "prefect" / "profiles.toml"


def _read_profile(home: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(profile_path(home).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    profile: dict[str, str] = content.get("profiles", {}).get(USER, {})
    return profile
