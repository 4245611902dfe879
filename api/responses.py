"""Build responses from the service's records."""

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
    """Build a response model, which FastAPI serializes without validating it again.

    Records may be of an older version or edited by hand: invalid ones are sent unchanged, with a warning in the log.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        logger.warning("%s: %s: %s", model.__name__, ".".join(map(str, problem["loc"])), problem["msg"])
        return cast(R, model.model_construct(**values))


def write_jobs(jobs: Any) -> HttpResponse:
    """Serialize a job or a list of jobs to JSON, without models and in the caller's thread, not on the event loop."""
    try:
        text = to_json(jobs, inf_nan_mode="null")
    except ValueError:  # parameters edited in Prefect may be nested deeper than pydantic supports
        finite = json.loads(json.dumps(jobs, default=str), parse_constant=lambda _: None)
        text = json.dumps(finite).encode()
    return HttpResponse(text, media_type="application/json")
