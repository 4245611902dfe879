"""Errors that a call raises, all derived from ClientError."""

import re
from http import HTTPStatus

DETAIL_CHARACTERS = 4000  # a `detail` is cut after these; the service sends no longer one
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class ClientError(Exception):
    """Base class of all errors.

    Attributes:
        status: HTTP status of the response; 0 if there was none.
        code: Stable machine-readable name.
        detail: What is wrong and how to fix it, for people.
        request_id: Identifies the request in the service's log; None if the service sent none.
    """

    status = 0
    code = "client_error"

    def __init__(
        self, detail: str, status: int | None = None, code: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(detail, status, code, request_id)  # all arguments, so that it pickles
        self.detail = detail
        self.status = self.status if status is None else status
        self.code = code or self.code
        self.request_id = request_id

    def __str__(self) -> str:
        return self.detail


class ServiceUnreachable(ClientError, ConnectionError):
    """No response: nothing listens at the URL, or the connection was lost or timed out."""

    code = "unreachable"


class UnexpectedResponse(ClientError):
    """The response is not one of a Tuneyard service."""

    code = "unexpected_answer"


class ChecksumMismatch(ClientError):
    """The download differs from what the service sent."""

    code = "checksum_mismatch"


class WaitTimeout(ClientError, TimeoutError):
    """The job did not end within the timeout; it keeps running."""

    code = "wait_timeout"


class InvalidRequest(ClientError, ValueError):
    """400, 413, 422: the request is invalid."""


class NotAuthenticated(ClientError, PermissionError):
    """401: the API key is missing or unknown."""


class NotAllowed(ClientError, PermissionError):
    """403: the API key lacks the scope."""


class NotFound(ClientError, LookupError):
    """404: no job or configuration has this id."""


class Conflict(ClientError):
    """409: a job is running and `strategy` is "reject", or the job's state does not allow the request."""


class RateLimited(ClientError):
    """429: too many requests, also after retries."""


class ServiceError(ClientError):
    """5xx: the service failed or is not ready."""


_BY_STATUS: dict[int, type[ClientError]] = {
    HTTPStatus.UNAUTHORIZED: NotAuthenticated,
    HTTPStatus.FORBIDDEN: NotAllowed,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.TOO_MANY_REQUESTS: RateLimited,
}


def error_for(status: int, body: object, request_id: str | None) -> ClientError:
    """Build the error that a response reports.

    Args:
        body: The response's JSON, `{detail, code, request_id}` or `{error: {message, code}}`; None if it is not JSON.
        request_id: From the response's header, for a body without one.
    """
    if isinstance(body, dict) and isinstance(of_openai := body.get("error"), dict):
        body = {"detail": of_openai.get("message"), "code": of_openai.get("code")}
    if not isinstance(body, dict) or body.get("detail") in (None, ""):
        return UnexpectedResponse(f"HTTP {status} without an explanation; is this a Tuneyard service?", status)
    kind = _BY_STATUS.get(status, InvalidRequest if status < HTTPStatus.INTERNAL_SERVER_ERROR else ServiceError)
    code = body.get("code")
    detail = str(body["detail"])[:DETAIL_CHARACTERS]
    valid_id = _check_request_id(body.get("request_id")) or _check_request_id(request_id)
    return kind(detail, status, code if isinstance(code, str) else None, valid_id)


def _check_request_id(value: object) -> str | None:
    """Return a request id that is safe to show on a terminal, else None."""
    return value if isinstance(value, str) and _REQUEST_ID.fullmatch(value) else None
