"""Error responses, all of one shape: `detail` for people, `code` for programs, `request_id` for the log.

Below `/v1` they have OpenAI's (`api.openai.errors`).
"""

import json
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match, compile_path
from starlette.types import Scope

from api.head import OWN_HEAD
from api.openai.errors import choose_status, find_param, is_openai, write_error
from api.parameters import body_fields
from sft.errors import InvalidConfig, TemplateNotFound, TuneyardError
from sft.explanations import explain_problems

SFT_PREFIX = "/api/sft"
DETAIL_CHARACTERS = 4000  # a detail quotes what the client sent, which may be a megabyte
UNREADABLE_BODY = "There was an error parsing the body"  # FastAPI's text for other errors of the parser
BODY_FORM = "it must be JSON in UTF-8, nested less than 900 deep, with numbers of less than 4300 digits"

CLOSES = "closes"  # in a request's state: after an error the rest of its long body would be read
RETRY_SOON = {"Retry-After": "2"}  # a lost server is tried again once a second

CODES = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "body_too_large",
    416: "range_not_satisfiable",
    421: "unknown_host",
    429: "rate_limited",
    503: "busy",
}


def install_error_handlers(app: FastAPI) -> None:
    """Handle errors of Tuneyard, of the router and of validation. `api.requests` handles unexpected ones."""

    @app.exception_handler(TuneyardError)
    async def handle_error(request: Request, error: TuneyardError) -> JSONResponse:
        return describe_error(request.scope, error)

    @app.exception_handler(HTTPException)
    async def handle_http_error(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            error.headers = {"Allow": ", ".join(allowed_methods(request))}  # the router names one route's
        return describe_error(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def handle_invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        detail = explain_request(error.errors(), request.headers.get("content-type"), body_fields(request.scope))
        param = find_param(error.errors())
        return error_response(request.scope, invalid_status(request.scope), detail, "invalid_request", param=param)


def allowed_methods(request: Request) -> list[str]:
    """The methods of a path in the OpenAPI document, where an exact path takes precedence over a template."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    paths = request.app.openapi()["paths"]
    matches = (item for template, item in paths.items() if compile_path(template)[0].match(path))
    item = paths.get(path) or next(matches, None)
    if item is not None:
        methods = {method.upper() for method in item}
    else:
        matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        methods = {method for route in matching for method in getattr(route, "methods", None) or ()}
    return sorted(methods | ({"HEAD"} if "GET" in methods and not path.endswith(OWN_HEAD) else set()))


def describe_error(scope: Scope, error: TuneyardError | HTTPException) -> JSONResponse:
    """Build the response to an error that has a status."""
    if isinstance(error, TuneyardError):
        status = invalid_status(scope) if isinstance(error, InvalidConfig | TemplateNotFound) else error.status
        headers = RETRY_SOON if status == HTTPStatus.SERVICE_UNAVAILABLE else None
        return error_response(scope, status, str(error), error.code, headers, error.param)
    detail, status = str(error.detail), error.status_code
    if detail == UNREADABLE_BODY:
        detail, status = f"the body can't be read: {BODY_FORM}", invalid_status(scope)
    elif error.status_code == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = f"{scope['path']} does not exist; /docs lists the endpoints"
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{scope['path']} does not support {scope['method']}; /docs lists the endpoints"
    code = CODES.get(error.status_code, "http_error")
    return error_response(scope, status, detail, code, error.headers)


def invalid_status(scope: Scope) -> int:
    """The status that the request's interface documents for an invalid request."""
    is_sft = scope["path"].removeprefix(scope.get("root_path", "")).startswith(SFT_PREFIX)
    return 400 if is_sft or is_openai(scope) else 422


def explain_request(problems: Sequence[Mapping[str, Any]], content_type: str | None, fields: Sequence[str]) -> str:
    """Explain every problem of a request, one per line. `fields` are the fields that the body may have."""
    lines, others = [], []
    for problem in problems:
        place, *within = problem["loc"]
        if problem["type"] == "json_invalid":
            reason = str(problem["ctx"]["error"]).removesuffix(" at")
            lines.append(f"the body is not valid JSON: {reason} at character {within[0]}")
        elif place == "body" and not within and isinstance(problem.get("input"), bytes):
            lines.append(f"the body must be sent with Content-Type: application/json, got {content_type!r}")
        else:
            others.append({**problem, "loc": within})
    return "\n".join([*lines, *([explain_problems(others, fields)] if others else [])])


def error_response(
    scope: Scope,
    status: int,
    detail: str,
    code: str,
    headers: Mapping[str, str] | None = None,
    param: str | None = None,
) -> JSONResponse:
    """Build an error response. Text that can't be encoded, such as half of a surrogate pair, is escaped.

    `param` names the wrong parameter, for OpenAI's interface.
    """
    shown = detail if len(detail) <= DETAIL_CHARACTERS else detail[: DETAIL_CHARACTERS - 3] + "..."
    shown = shown.encode("utf-8", "backslashreplace").decode("utf-8")
    if scope.get("state", {}).get(CLOSES):
        headers = {**(headers or {}), "Connection": "close"}
    if is_openai(scope):
        status = choose_status(status)
        return JSONResponse(write_error(status, shown, code, param), status, headers)
    request_id = scope.get("state", {}).get("request_id")
    return JSONResponse({"detail": shown, "code": code, "request_id": request_id}, status, headers)


def printable(text: str) -> str:
    """Quote text as a JSON string in ASCII, which is one line."""
    return json.dumps(text)
