"""Give each request an id, a log line and metrics, and a response to unexpected errors."""

import asyncio
import logging
import re
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import RETRY_SOON, describe_error, error_response, printable
from api.metrics import ServiceMetrics
from sft.errors import TuneyardError

logger = logging.getLogger("api.requests")

REQUEST_ID_HEADER = "X-Request-ID"
VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
PLAIN_ADDRESS = re.compile(r"[A-Za-z0-9.:%_-]{1,64}")
CLIENT_CLOSED_REQUEST = 499  # nginx's status for the log and the metrics; it is never sent


class RequestRecorder:
    """ASGI middleware that records requests. It passes streams on without buffering."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises only errors after the response has started, so that the connection is closed."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = choose_request_id(Headers(scope=scope).get(REQUEST_ID_HEADER))
        scope.setdefault("state", {})["request_id"] = request_id
        began, responded, status = time.perf_counter(), None, CLIENT_CLOSED_REQUEST

        async def record_and_send(message: Message) -> None:
            nonlocal status, responded
            if message["type"] == "http.response.start":
                status, responded = message["status"], time.perf_counter()
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        failure: Exception | None = None
        try:
            await self.app(scope, receive, record_and_send)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # by the server, which stops and has waited for the response
            if responded is not None:
                raise
            await respond_to_error(scope, _stopping())(scope, receive, record_and_send)
        except Exception as error:
            failure = None if isinstance(error, TuneyardError | HTTPException) else error
            if responded is not None:
                raise
            await respond_to_error(scope, error)(scope, receive, record_and_send)
        finally:
            seconds = time.perf_counter() - began
            self.metrics.count_request(scope, status, (responded or began + seconds) - began)
            log_request(scope, status, seconds, failure)


def respond_to_error(scope: Scope, error: Exception) -> Response:
    """Build the response to an unhandled error. An unexpected one is described only in the log."""
    if isinstance(error, TuneyardError | HTTPException):
        return describe_error(scope, error)
    return error_response(scope, 500, "Internal server error; see the log for this request id", "internal_error")


def _stopping() -> HTTPException:
    detail = "The service is stopping and could not respond in time; try again"
    return HTTPException(503, detail, {**RETRY_SOON, "Connection": "close"})


def choose_request_id(given: str | None) -> str:
    """Use the client's id if it is short and plain, else a new one."""
    return given if given and VALID_REQUEST_ID.fullmatch(given) else uuid4().hex


def log_request(scope: Scope, status: int, seconds: float, failure: Exception | None) -> None:
    """Log one line per request, with a traceback for an unexpected error."""
    state, client = scope["state"], scope.get("client")
    logger.log(
        logging.ERROR if failure else logging.INFO,
        "%s %s %d %.1f ms request_id=%s client=%s key=%s",
        scope["method"] if scope["method"].isalpha() else printable(scope["method"]),
        printable(scope["path"]),
        status,
        seconds * 1000,
        state["request_id"],
        _shown_address(client[0]) if client else None,
        printable(state["client"].name) if state.get("client") else None,
        exc_info=failure,
    )


def _shown_address(address: str) -> str:
    """Quote an unusual address: behind a trusted proxy it is the arbitrary text of `X-Forwarded-For`."""
    return address if PLAIN_ADDRESS.fullmatch(address) else printable(address[:128])


def log_to_stderr_unless_configured() -> None:
    """Log requests to stderr if only uvicorn's logging is configured. Replaces uvicorn's access log, which has no ids.

    With `--no-access-log` requests are not logged.
    """
    api_logger, access_logger = logging.getLogger("api"), logging.getLogger("uvicorn.access")
    if api_logger.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    api_logger.addHandler(handler)
    api_logger.setLevel(logging.INFO)
    if not access_logger.handlers and not access_logger.propagate:
        logger.setLevel(logging.WARNING)
    access_logger.handlers.clear()
    access_logger.propagate = False
