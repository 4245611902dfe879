"""Prefect's client with a deadline for each call."""

import os
from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

import httpx
from prefect.client.base import PrefectHttpxSyncClient
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound, PrefectException
from tenacity import retry_if_exception_type, retry_if_result

from jobs.engine.credentials import find_password
from jobs.network.bounded_http import bound
from jobs.network.deadlines import breaker_for, call_deadline, seconds_left
from jobs.network.failures import describe_failure
from jobs.retrying import patient
from jobs.settings import Settings
from sft.errors import StackError
from tuneyard_wire.loopback import is_on_this_machine

T = TypeVar("T")

PAUSES = (0.25, inf)


class PatientPrefectClient(PrefectHttpxSyncClient):
    """Prefect's client, retrying until its deadline instead of five times with pauses of up to a minute."""

    def send(self, request: httpx.Request, *args: Any, **kwargs: Any) -> httpx.Response:
        """Send one request. Raises as Prefect's client, and StackError while the server is known to be down."""
        breaker = breaker_for("Prefect's API", str(self.base_url), httpx.TimeoutException)
        with breaker.watch(), call_deadline():
            return super().send(request, *args, **kwargs)

    def _send_with_retry(
        self,
        request: httpx.Request,
        send: Any,
        send_args: Any,
        send_kwargs: Any,
        retry_codes: set[int] | None = None,
        retry_exceptions: tuple[type[Exception], ...] = (),
    ) -> httpx.Response:
        is_passing = retry_if_result(lambda response: response.status_code in (retry_codes or ()))
        tries = patient(retry_if_exception_type(retry_exceptions) | is_passing, seconds_left(), PAUSES)
        response: httpx.Response = tries(super()._send_with_retry, request, send, send_args, send_kwargs)
        return response


def open_prefect_client(settings: Settings) -> SyncPrefectClient:
    """Prefect's client for the API in the settings, with credentials; use it as a context manager."""
    key = os.environ.get("PREFECT_API_KEY")
    url = str(settings.prefect_api_url)
    by_proxy = {"trust_env": not is_on_this_machine(url)}
    client = SyncPrefectClient(url, auth_string=find_password(settings), api_key=key, httpx_settings=by_proxy)
    bound(client._client).__class__ = PatientPrefectClient  # Prefect creates its HTTP client itself
    return client


def call(request: Callable[[], T]) -> T:
    """Run a request to Prefect and raise StackError for errors that our clients can't act on.

    With retries it takes no longer than `jobs.network.deadlines` allows.
    """
    try:
        return request()
    except ObjectNotFound as error:
        raise StackError("Prefect does not know the deployment or work pool; run `tuneyard up`") from error
    except httpx.HTTPStatusError as error:
        said = f"{error.response.status_code} {error.response.text[:300]}"
        raise StackError(f"Prefect's API refused a request ({said}); see `tuneyard status`") from error
    except (httpx.HTTPError, PrefectException) as error:
        raise StackError(
            f"Prefect's API can't be reached ({describe_failure(error)}); see `tuneyard status`"
        ) from error


def means_missing(error: StackError) -> bool:
    """Whether a `call` failed because the requested object does not exist."""
    cause = error.__cause__
    refusal = cause.response.status_code if isinstance(cause, httpx.HTTPStatusError) else None
    return isinstance(cause, ObjectNotFound) or refusal == httpx.codes.NOT_FOUND
