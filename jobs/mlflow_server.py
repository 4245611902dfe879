"""The MLflow server in the settings: its URL without credentials, and calls with them.

MLflow itself takes seconds to import, so the API asks its REST interface.
"""

import configparser
import os
import ssl
from collections.abc import Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx

from jobs.network.bounded_http import bound
from jobs.network.deadlines import READ_SECONDS, breaker_for
from jobs.settings import Settings
from jobs.url_credentials import split_credentials
from tuneyard_wire.loopback import is_on_this_machine

USERNAME, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
CREDENTIALS_FILE = Path("~/.mlflow/credentials")
REFUSED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)


class MlflowAuth(httpx.Auth):
    """What MLflow's client sends: the user's name and password if both are known, else the token."""

    def __init__(self, username: str | None, password: str | None, token: str | None) -> None:
        self._basic = httpx.BasicAuth(username, password) if username and password else None
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response]:
        """Add the header."""
        if self._basic is not None:
            yield from self._basic.auth_flow(request)
            return
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


@dataclass(frozen=True)
class MlflowServer:
    """An MLflow server.

    Attributes:
        url: Its URL without credentials, which may be shown; its scheme is not HTTP if there is no server.
    """

    url: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @classmethod
    def find(cls, settings: Settings) -> Self:
        """The server in these settings; missing credentials are read from MLflow's own file."""
        in_file = _read_credentials_file() if settings.mlflow_tracking_username is None else {}
        password, token = settings.mlflow_tracking_password, settings.mlflow_tracking_token
        address, _, _ = split_credentials(f"{settings.mlflow_tracking_uri}".rstrip("/"))
        return cls(
            address,
            settings.mlflow_tracking_username or in_file.get(USERNAME.lower()),
            password.get_secret_value() if password else in_file.get(PASSWORD.lower()),
            token.get_secret_value() if token else None,
        )

    @property
    def has_api(self) -> bool:
        """Whether it is reached by HTTP."""
        return urlsplit(self.url).scheme in ("http", "https")

    def environment(self) -> dict[str, str]:
        """Variables by which MLflow's own client finds the credentials."""
        values = {USERNAME: self.username, PASSWORD: self.password, TOKEN: self.token}
        return {name: value for name, value in values.items() if value}

    def open(self, timeout_seconds: float = READ_SECONDS) -> httpx.Client:
        """An HTTP client for `api/2.0/` whose calls end by their deadline; a local server is called without a proxy."""
        client = httpx.Client(
            base_url=f"{self.url}/api/2.0/",
            timeout=timeout_seconds,
            trust_env=not is_on_this_machine(self.url),
            auth=MlflowAuth(self.username, self.password, self.token),
            verify=_find_certificates() if self.url.startswith("https") else False,  # they take long to load
        )
        return bound(client)

    def watch(self) -> AbstractContextManager[None]:
        """Watch one call with this server's breaker. Raises StackError at once if the server is known to be down."""
        return breaker_for("MLflow", self.url, httpx.TimeoutException).watch()


def explain_refusal(status: int) -> str | None:
    """What to do if this status means that MLflow refuses the credentials; None for any other status."""
    if status not in REFUSED:
        return None
    return f"refuses the credentials ({status}); set {USERNAME} and {PASSWORD}, or {TOKEN}"


def _read_credentials_file() -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(CREDENTIALS_FILE.expanduser(), encoding="utf-8")
    except (OSError, RuntimeError, ValueError, configparser.Error):  # MLflow's own client says what is wrong with it
        return {}
    return dict(parser["mlflow"]) if "mlflow" in parser else {}


def _find_certificates() -> ssl.SSLContext | bool:
    """Those that MLflow's variables name, else the usual ones."""
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("1", "true"):
        return False
    authorities = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    own = os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH")
    if not authorities and not own:
        return True
    context = ssl.create_default_context(cafile=authorities or None)
    if own:
        context.load_cert_chain(own)
    return context
