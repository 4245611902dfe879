"""Everything a call can raise: one tree."""

import re
from http import HTTPStatus

DETAIL_CHARACTERS = 4000  # of an explanation; the service's are no longer
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class ClientError(Exception):
    """Base of the tree.

    Attributes:
        status: HTTP status of the answer; 0 when there was none.
        code: Stable machine-readable name.
        detail: What is wrong and how to mend it, for people.
        request_id: Finds the request in the service's log; None when the service gave none.
    """

    status = 0
    code = "client_error"

    def __init__(
        self, detail: str, status: int | None = None, code: str | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(detail, status, code, request_id)  # the arguments again, so that it pickles
        self.detail = detail
        self.status = self.status if status is None else status
        self.code = code or self.code
        self.request_id = request_id

    def __str__(self) -> str:
        return self.detail


class ServiceUnreachable(ClientError, ConnectionError):
    """No answer: nothing listens there, or the connection was lost or timed out."""

    code = "unreachable"


class UnexpectedAnswer(ClientError):
    """An answer that is not Tuneyard's."""

    code = "unexpected_answer"


class ChecksumMismatch(ClientError):
    """A download that is not what the service sent."""

    code = "checksum_mismatch"


class WaitTimeout(ClientError, TimeoutError):
    """The job had not ended in the time given; it goes on."""

    code = "wait_timeout"


class InvalidRequest(ClientError, ValueError):
    """400, 413, 422: what was asked for can't work."""


class NotAuthenticated(ClientError, PermissionError):
    """401: no API key, or one that is not known."""


class NotAllowed(ClientError, PermissionError):
    """403: this API key may not do that."""


class NotFound(ClientError, LookupError):
    """404: no job or configuration has this id."""


class Conflict(ClientError):
    """409: a job is running and `strategy="reject"` was asked for, or the job is not in the right state."""


class RateLimited(ClientError):
    """429: too many requests, even after waiting."""


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
    """The error an answer stands for.

    Args:
        body: The answer's JSON, `{detail, code, request_id}`; None when it is not JSON.
    """
    if not isinstance(body, dict) or "detail" not in body:
        return UnexpectedAnswer(f"HTTP {status} without an explanation; is this a Tuneyard service?", status)
    kind = _BY_STATUS.get(status, InvalidRequest if status < HTTPStatus.INTERNAL_SERVER_ERROR else ServiceError)
    code = body.get("code")
    detail = str(body["detail"])[:DETAIL_CHARACTERS]
    told_id = _read_id(body.get("request_id")) or _read_id(request_id)
    return kind(detail, status, code if isinstance(code, str) else None, told_id)


def _read_id(given: object) -> str | None:
    """A request's id, if it is one that a service makes or takes: it is shown beside the message."""
    return given if isinstance(given, str) and _REQUEST_ID.fullmatch(given) else None
