"""Responses as models, or the error that they stand for."""

from collections.abc import Callable, Iterable
from copy import deepcopy
from functools import partial, reduce
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from tuneyard_client.errors import UnexpectedAnswer, error_for
from tuneyard_wire.response import Response

T = TypeVar("T")
R = TypeVar("R", bound=Response)
_RECORDS = TypeAdapter(list[Any])


def check(answer: httpx.Response) -> httpx.Response:
    """The answer, its body read, if it is a success. Raises the ClientError it stands for otherwise."""
    if answer.is_success:
        return answer
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        body = None
    raise error_for(answer.status_code, body, answer.headers.get("X-Request-ID"))


def read_model(model: type[R]) -> Callable[[httpx.Response], R]:
    """What reads a response as this model. It raises UnexpectedAnswer."""
    return lambda answer: validate(partial(_make, model), answer.json)


def _make(model: type[R], values: Any) -> R:
    """The model. Where an older service says null and this version has another default, it is the default."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        nulls = [problem["loc"] for problem in error.errors(include_url=False) if problem["input"] is None]
        if not nulls:
            raise
        return model.model_validate(_without(values, nulls))


def _without(values: Any, places: Iterable[tuple[int | str, ...]]) -> Any:
    """A copy without the fields at these places."""
    values = deepcopy(values)
    for *above, name in places:
        part = reduce(lambda inner, step: inner[step], above, values)
        if isinstance(part, dict):
            part.pop(name, None)
    return values


def read_models(model: type[R], key: str | None = None) -> Callable[[httpx.Response], list[R]]:
    """What reads a response as a list of models, the list being the value of `key` if that is given."""

    def read(answer: httpx.Response) -> list[R]:
        def content() -> Any:
            body = answer.json()
            return body[key] if key and isinstance(body, dict) else body

        return validate(lambda records: [_make(model, record) for record in _RECORDS.validate_python(records)], content)

    return read


def validate(read: Callable[[Any], T], content: Callable[[], Any]) -> T:
    """Read the content. Raises UnexpectedAnswer, with the place and the reason, where it is not what `read` takes."""
    try:
        return read(content())
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the answer"
        raise UnexpectedAnswer(f"{place} is not as expected: {problem['msg']}; is this a Tuneyard service?") from error
    except (ValueError, LookupError, RecursionError) as error:
        raise UnexpectedAnswer("the answer is not JSON as expected; is this a Tuneyard service?") from error
