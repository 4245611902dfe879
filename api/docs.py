"""The OpenAPI document: FastAPI's, with examples, errors and security schemes for every operation."""

from collections.abc import AsyncIterator
from copy import deepcopy
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from api.auth import PUBLIC_PATHS
from api.errors import SFT_PREFIX
from api.example import Example
from api.examples import EXAMPLES
from api.job_configs import show_configs
from api.openai.errors import PREFIX as OPENAI_PREFIX
from api.openai.errors import choose_status, write_error
from tuneyard_wire.openai import OpenAIError
from tuneyard_wire.service import Error

Document = dict[str, Any]
PIECE_BYTES = 2**16
METHODS = ("get", "head", "post", "put", "patch", "delete")

DESCRIPTIONS = {
    400: ("invalid_config", "lora_r: must be greater than 0, got 0", "The request is not valid"),
    401: ("unauthorized", "An API key is required: send it as Authorization: Bearer KEY", "No valid API key"),
    403: ("forbidden", "This API key has scope read; POST needs submit", "The API key lacks the scope"),
    404: ("job_not_found", "Job 550e8400-e29b-41d4-a716-446655440000 not found", "Not found"),
    408: ("request_timeout", "The body did not arrive within 60 s (TUNEYARD_BODY_TIMEOUT_SECONDS)", "Too slow"),
    409: ("training_busy", "A training job is already running. Please try again later.", "Busy"),
    413: ("body_too_large", "The body may have at most 1048576 bytes (TUNEYARD_MAX_BODY_BYTES)", "Too large"),
    416: (
        "range_not_satisfiable",
        "Range bytes=900- starts after the end of the file, which has 512 bytes",
        "The range is outside the file",
    ),
    422: ("invalid_request", "batch_size: must be greater than 0, got 0", "The request is not valid"),
    429: ("rate_limited", "At most 600 per 1 minute; try again in 3 s", "Too many requests; see Retry-After"),
    507: ("disk_full", "no space left in /srv/tuneyard/own-data; free some", "The disk is full"),
    503: ("stack_unavailable", "Prefect's API can't be reached (ConnectError); see `tuneyard status`", "Not ready"),
}
# POST operations that create something: the key of the response that is a parameter of the paths for it.
CREATED = {"/models": "upload_id", "/train": "job_id", "/api/sft/train": "job_id", "/api/sft/configs": "config_id"}
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key from `tuneyard keys create`."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def install_openapi(app: FastAPI) -> None:
    """Make `app.openapi` return the complete document, which is built on first use."""
    make_plain = app.openapi

    def openapi() -> Document:
        if app.openapi_schema is None:
            app.openapi_schema = complete(make_plain())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    _keep_rendered(app)


def _keep_rendered(app: FastAPI) -> None:
    """Render the document once: it needs no key, and rendering it would block all requests each time."""
    rendered: dict[str, bytes] = {}  # by the path prefix that a proxy adds
    one_thread = CapacityLimiter(1)  # hundreds may request it before it is rendered

    def render(root_path: str) -> None:
        if root_path not in rendered:
            servers = {"servers": [{"url": root_path}]} if root_path else {}
            rendered[root_path] = bytes(JSONResponse(app.openapi() | servers).body)

    async def send(request: Request) -> Response:
        root_path = request.scope.get("root_path", "").rstrip("/")
        if root_path not in rendered:
            await to_thread.run_sync(render, root_path, limiter=one_thread)
        return StreamingResponse(
            _cut(rendered[root_path]),
            media_type="application/json",
            headers={"Content-Length": str(len(rendered[root_path]))},
        )

    own = next(index for index, route in enumerate(app.router.routes) if getattr(route, "path", "") == app.openapi_url)
    app.router.routes[own] = Route(str(app.openapi_url), send, include_in_schema=False)


async def _cut(content: bytes) -> AsyncIterator[bytes]:
    """Split the content, so that the server buffers only one piece for a client that does not read."""
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]


def complete(plain: Document) -> Document:
    """Add the errors of each operation, examples and the security schemes to FastAPI's document."""
    document = deepcopy(plain)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["Error"] = Error.model_json_schema()
    of_openai = OpenAIError.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= {**of_openai.pop("$defs"), "OpenAIError": of_openai}
    show_configs(schemas)
    components["securitySchemes"] = SECURITY_SCHEMES
    for path, item in document["paths"].items():
        for method in METHODS:
            if method in item:
                _complete_operation(item[method], path, EXAMPLES.get((method.upper(), path), Example()))
    for path, name in CREATED.items():
        document["paths"][path]["post"]["responses"]["200"]["links"] = _links(document["paths"], name)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    return document


def _complete_operation(operation: Document, path: str, example: Example) -> None:
    operation["summary"] = example.summary or operation.get("summary", "")
    for parameter in operation.get("parameters", []):
        parameter["schema"] = _without_null(parameter["schema"])
    responses = operation["responses"]
    responses.pop("422", None)  # FastAPI's own error shape, which is never sent
    for status in sorted(_errors(operation, path) | set(example.errors)):
        responses.setdefault(str(status), _error(status, path))
    for status in [status for status in responses if status.isdecimal() and int(status) in DESCRIPTIONS]:
        responses[status].setdefault("content", _error(int(status), path)["content"])
    if path not in PUBLIC_PATHS:
        operation["security"] = [
            {},
            *({name: []} for name in SECURITY_SCHEMES),
        ]  # {}: open until a key is created
    if example.requests:
        named = {name: {"summary": name, "value": value} for name, value in example.requests.items()}
        operation["requestBody"]["content"]["application/json"]["examples"] = named
    if example.response is not None:
        content = responses["200"].setdefault("content", {})
        shown = {"": example.response, **example.other_responses}
        named = {name or "usual": {"summary": name or "usual", "value": value} for name, value in shown.items()}
        one = {"example": example.response}
        content.setdefault("application/json", {}).update({"examples": named} if example.other_responses else one)


def _without_null(schema: Document) -> Document:
    """Drop null from an optional parameter's schema: a URL or header has no null."""
    if "anyOf" not in schema:
        return schema
    kinds = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
    return (
        {**schema, "anyOf": kinds}
        if len(kinds) > 1
        else {**kinds[0], **{k: v for k, v in schema.items() if k != "anyOf"}}
    )


def _links(paths: Document, name: str) -> Document:
    """Link to the operations on the object that was created."""
    operations = (
        item[method] for path, item in paths.items() if f"{{{name}}}" in path for method in METHODS if method in item
    )
    value = f"$response.body#/{name}"
    return {
        operation["operationId"]: {"operationId": operation["operationId"], "parameters": {name: value}}
        for operation in operations
    }


def _errors(operation: Document, path: str) -> set[int]:
    """The error statuses of any operation of this kind."""
    invalid = {400} if path.startswith((SFT_PREFIX, OPENAI_PREFIX)) else {422}
    if path in PUBLIC_PATHS:
        return invalid
    return (
        {401, 403, 413, 429, 503}
        | invalid
        | ({408} if "requestBody" in operation else set())
        | ({404} if any(parameter["in"] == "path" for parameter in operation.get("parameters", [])) else set())
    )


def _error(status: int, path: str) -> Document:
    code, detail, description = DESCRIPTIONS[status]
    if path.startswith(OPENAI_PREFIX):
        example = write_error(choose_status(status), detail, code)
        of_openai = {"schema": {"$ref": "#/components/schemas/OpenAIError"}, "example": example}
        return {"description": description, "content": {"application/json": of_openai}}
    example = {"detail": detail, "code": code, "request_id": "5b1c0c1f3a0e4d7f9f2d6c6f3a8e9b10"}
    content = {"schema": {"$ref": "#/components/schemas/Error"}, "example": example}
    return {"description": description, "content": {"application/json": content}}
