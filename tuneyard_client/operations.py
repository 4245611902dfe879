"""Operations of several calls, shared by both clients, and their connection settings."""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import httpx

from tuneyard_client import calls
from tuneyard_client.calls import Call, Pause, Steps
from tuneyard_client.errors import ClientError, InvalidRequest, WaitTimeout
from tuneyard_client.responses import PLAIN
from tuneyard_client.urls import check_url, hide_password
from tuneyard_wire.jobs import TrainJob
from tuneyard_wire.loopback import is_on_this_machine

DEFAULT_URL = "http://127.0.0.1:23478"
DEFAULT_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 1.0
_API_KEY = re.compile("[!-~]+")  # visible ASCII; a blank would end the key

H = TypeVar("H", httpx.Client, httpx.AsyncClient)


def wait(
    job_id: str, timeout_seconds: float | None, on_progress: Callable[[TrainJob], None] | None, poll_seconds: float
) -> Steps[TrainJob]:
    """Poll a job until it has ended. Raises WaitTimeout."""
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    seen = None
    while True:
        job: TrainJob = yield calls.job(job_id)
        if on_progress and job != seen:
            on_progress(job)
        seen = job
        if job.has_ended:
            return job
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise WaitTimeout(f"job {job_id} is still {job.status} after {timeout_seconds} s; it keeps running")
        yield Pause(poll_seconds if left is None else min(poll_seconds, left))


def open_http(kind: type[H], base_url: str | None, api_key: str | None, timeout_seconds: float) -> H:
    """Open httpx's client for a service. One on this machine is reached without a proxy.

    Raises:
        ClientError: `base_url` is not a service's URL, the API key can't be sent in a header, or the environment names
            a proxy or certificates that can't be used.
    """
    settings = _connection_settings(base_url, api_key, timeout_seconds)
    try:
        return kind(**settings)
    except (httpx.InvalidURL, ValueError, ImportError, OSError) as error:
        variables = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        problem = hide_password(" ".join(str(error).split()))
        raise ClientError(f"no connection can be made: {problem}; check {variables}", code="invalid_proxy") from error


def _connection_settings(base_url: str | None, api_key: str | None, timeout_seconds: float) -> dict[str, Any]:
    base_url = os.environ.get("TUNEYARD_URL") or DEFAULT_URL if base_url is None else base_url
    api_key = os.environ.get("TUNEYARD_API_KEY") if api_key is None else api_key
    if api_key and not _API_KEY.fullmatch(api_key):
        raise ClientError("the API key has invalid characters; check TUNEYARD_API_KEY", code="invalid_api_key")
    check_url(base_url, bool(api_key))
    headers = {"Accept-Encoding": PLAIN} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
    use_proxy = not is_on_this_machine(base_url)
    return {"base_url": base_url, "headers": headers, "timeout": timeout_seconds, "trust_env": use_proxy}


@contextmanager
def opened_upload(call: Call[Any]) -> Iterator[BinaryIO | None]:
    """The file that a call sends, open; None if it sends none. Raises ClientError if it can't be read."""
    if call.upload is None:
        yield None
        return
    try:
        file = call.upload.open("rb")
    except OSError as error:
        raise ClientError(f"{call.upload} can't be read: {error.strerror}", code="file_unreadable") from error
    with file:
        yield file


def build_request(
    http: httpx.Client | httpx.AsyncClient, call: Call[Any], upload: BinaryIO | None = None
) -> httpx.Request:
    """Build httpx's request for a call. Raises InvalidRequest for what can't be sent as JSON or in a header.

    Args:
        upload: The file that the call sends, from `opened_upload`.
    """
    timeout = httpx.Timeout(**{**http.timeout.as_dict(), "read": None}) if call.is_endless else http.timeout
    for name, value in call.headers.items():
        if not (value.isascii() and value.isprintable() and value == value.strip()):
            raise InvalidRequest(f"{name} must be printable ASCII text, got {value!r:.80}", code="invalid_request")
    try:
        return http.build_request(
            call.method,
            call.path,
            params=dict(call.params) or None,
            headers=dict(call.headers),
            timeout=timeout,
            **_write_body(call, upload),
        )
    except (TypeError, ValueError, RecursionError, httpx.InvalidURL) as error:
        raise InvalidRequest(f"the request can't be sent: {error}", code="invalid_request") from error


def _write_body(call: Call[Any], upload: BinaryIO | None) -> dict[str, Any]:
    if call.content is not None:
        return {"content": call.content}
    if upload is None or call.upload is None:
        return {"json": call.body}
    name = call.upload.name.encode("utf-8", "replace").decode()
    return {"data": call.body or {}, "files": {"file": (name, upload, "application/octet-stream")}}
