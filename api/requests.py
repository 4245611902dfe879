"""What every request goes through first: its id, its log line, its measurements, and an answer whatever happens."""

import logging
import re
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import describe_error, error_response, printable
from api.metrics import ServiceMetrics
from sft.errors import TuneyardError

logger = logging.getLogger("api.requests")

REQUEST_ID_HEADER = "X-Request-ID"
SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
SANE_ADDRESS = re.compile(r"[A-Za-z0-9.:%_-]{1,64}")
CLIENT_WENT_AWAY = 499  # as nginx calls it; nobody receives it


class RequestRecorder:
    """ASGI middleware. Streams pass through it as they come."""

    def __init__(self, app: ASGIApp, metrics: ServiceMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Only an error after the answer has begun is raised, so that the connection is cut."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = choose_request_id(Headers(scope=scope).get(REQUEST_ID_HEADER))
        scope.setdefault("state", {})["request_id"] = request_id
        began, began_answering, status = time.perf_counter(), None, CLIENT_WENT_AWAY

        async def record_and_send(message: Message) -> None:
            nonlocal status, began_answering
            if message["type"] == "http.response.start":
                status, began_answering = message["status"], time.perf_counter()
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        failure: Exception | None = None
        try:
            await self.app(scope, receive, record_and_send)
        except ClientDisconnect:
            pass
        except Exception as error:
            failure = None if isinstance(error, TuneyardError | HTTPException) else error
            if began_answering is not None:
                raise
            await answer(scope, error)(scope, receive, record_and_send)
        finally:
            seconds = time.perf_counter() - began
            self.metrics.count_request(scope, status, (began_answering or began + seconds) - began)
            log_request(scope, status, seconds, failure)


def answer(scope: Scope, error: Exception) -> Response:
    """The answer to an error that no handler took; what it was stays in the log."""
    if isinstance(error, TuneyardError | HTTPException):
        return describe_error(scope, error)
    return error_response(scope, 500, "Internal server error; the log has more under this request id", "internal_error")


def choose_request_id(given: str | None) -> str:
    """The client's id if it is short and plain, else a new one."""
    return given if given and SANE_REQUEST_ID.fullmatch(given) else uuid4().hex


def log_request(scope: Scope, status: int, seconds: float, failure: Exception | None) -> None:
    """One record a request, and one line of it but for a traceback."""
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
    """The client's, which is whatever `X-Forwarded-For` says behind a proxy that is trusted."""
    return address if SANE_ADDRESS.fullmatch(address) else printable(address[:128])


def log_to_stderr_unless_configured() -> None:
    """Show our lines where only uvicorn's logging is set up. Its access log, which knows no ids, goes silent then;
    where it was switched off (`--no-access-log`), ours is as well."""
    ours, theirs = logging.getLogger("api"), logging.getLogger("uvicorn.access")
    if ours.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
    if not theirs.handlers and not theirs.propagate:
        logger.setLevel(logging.WARNING)
    theirs.handlers.clear()
    theirs.propagate = False
