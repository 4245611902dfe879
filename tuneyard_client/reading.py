"""Parse responses into models, or raise the error they report."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial, reduce
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from tuneyard_client.errors import UnexpectedResponse, error_for
from tuneyard_wire.response import Response

T = TypeVar("T")
R = TypeVar("R", bound=Response)
_RECORDS = TypeAdapter(list[Any])


def check(response: httpx.Response) -> httpx.Response:
    """Return a successful response. Raises the ClientError that any other one reports; its body must be read."""
    if response.is_success:
        return response
    try:
        body = response.json()
    except (ValueError, RecursionError):
        body = None
    raise error_for(response.status_code, body, response.headers.get("X-Request-ID"))


def read_model(model: type[R]) -> Callable[[httpx.Response], R]:
    """Return a function that parses a response as this model or raises UnexpectedResponse."""
    return lambda response: validate(partial(_make, model), response.json)


def _make(model: type[R], values: Any) -> R:
    """Validate values; a null that an older service sends where this version allows none becomes the default."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        nulls = [problem["loc"] for problem in error.errors(include_url=False) if problem["input"] is None]
        if not nulls:
            raise
        return model.model_validate(_without(values, nulls))


def _without(values: Any, paths: Iterable[tuple[int | str, ...]]) -> Any:
    """Copy values without the fields at these paths."""
    values = deepcopy(values)
    for *parents, name in paths:
        part = reduce(lambda inner, step: inner[step], parents, values)
        if isinstance(part, dict):
            part.pop(name, None)
    return values


def read_models(model: type[R], key: str | None = None) -> Callable[[httpx.Response], list[R]]:
    """Return a function that parses a response, or the value of `key` in it, as a list of models."""

    def read(response: httpx.Response) -> list[R]:
        def content() -> Any:
            body = response.json()
            return body[key] if key and isinstance(body, dict) else body

        return validate(lambda records: [_make(model, record) for record in _RECORDS.validate_python(records)], content)

    return read


def validate(read: Callable[[Any], T], content: Callable[[], Any]) -> T:
    """Return `read(content())`. Raises UnexpectedResponse, with the path and the reason, if the content is invalid."""
    try:
        return read(content())
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in problem["loc"]) or "the response"
        raise UnexpectedResponse(f"{path} is invalid: {problem['msg']}; is this a Tuneyard service?") from error
    except (ValueError, LookupError, RecursionError) as error:
        raise UnexpectedResponse("the response is not the expected JSON; is this a Tuneyard service?") from error
