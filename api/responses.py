"""Build responses from the service's records."""

import json
import logging
from typing import Any, TypeVar, cast

import pydantic_core
from fastapi.responses import Response as HttpResponse
from pydantic import ValidationError

from tuneyard_wire.response import Response

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Response)


def respond(model: type[R], values: dict[str, Any]) -> R:
    """Build a response model, which FastAPI serializes without validating it again.

    Records may be of an older version or edited by hand: invalid ones are sent unchanged, with a warning in the log.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        logger.warning("%s: %s: %s", model.__name__, ".".join(map(str, problem["loc"])), problem["msg"])
        return cast(R, model.model_construct(**values))


def write_job(job: dict[str, Any]) -> HttpResponse:
    """Serialize a job, without a model and in the caller's thread, not on the event loop."""
    return HttpResponse(to_json(job), media_type="application/json")


def to_json(value: Any) -> bytes:
    """Plain values as JSON; NaN and infinity become null."""
    try:
        return pydantic_core.to_json(value, inf_nan_mode="null")
    except ValueError:  # parameters edited in Prefect may be nested deeper than pydantic supports
        finite = json.loads(json.dumps(value, default=str), parse_constant=lambda _: None)
        return json.dumps(finite).encode()
