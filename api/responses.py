"""Build wire models from the service's own records."""

import json
import logging
from typing import Any, TypeVar, cast

from fastapi.responses import Response as HttpResponse
from pydantic import ValidationError
from pydantic_core import to_json

from tuneyard_wire.response import Response

logger = logging.getLogger(__name__)

R = TypeVar("R", bound=Response)


def respond(model: type[R], values: dict[str, Any]) -> R:
    """The model with these values; FastAPI takes it as it is, and pydantic's core writes it once.

    Our own records may be of an older version, or written by hand: what does not fit is sent as it is and logged.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        logger.warning("%s: %s: %s", model.__name__, ".".join(map(str, problem["loc"])), problem["msg"])
        return cast(R, model.model_construct(**values))


def write_jobs(jobs: Any) -> HttpResponse:
    """A job, or a list of them, as JSON: no models are made of them, and the event loop does not write them."""
    try:
        text = to_json(jobs, inf_nan_mode="null")
    except ValueError:  # parameters edited in Prefect may be nested deeper than pydantic's core writes
        finite = json.loads(json.dumps(jobs, default=str), parse_constant=lambda _: None)
        text = json.dumps(finite).encode()
    return HttpResponse(text, media_type="application/json")
