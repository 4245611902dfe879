"""Errors as clients see them: one shape, `detail` for people and `code` for programs."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from sft.config import explain_problems
from sft.errors import TuneyardError

logger = logging.getLogger(__name__)

SFT_PREFIX = "/api/sft"


def install_error_handlers(app: FastAPI) -> None:
    """Answer every error of ours, of validation and of nobody's expectation in the same shape."""

    @app.exception_handler(TuneyardError)
    async def answer_error(_request: Request, error: TuneyardError) -> JSONResponse:
        return error_response(error.status, str(error), error.code)

    @app.exception_handler(RequestValidationError)
    async def answer_invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [{**problem, "loc": problem["loc"][1:]} for problem in error.errors()]
        status = 400 if request.url.path.startswith(SFT_PREFIX) else 422
        return error_response(status, explain_problems(problems, []), "invalid_request")

    @app.exception_handler(Exception)
    async def answer_unexpected(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_response(500, "Internal server error", "internal_error")


def error_response(status: int, detail: str, code: str) -> JSONResponse:
    """The one shape."""
    return JSONResponse({"detail": detail, "code": code}, status_code=status)
