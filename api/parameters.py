"""Reject query parameters that are unknown, or repeated where only one value counts."""

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, get_args, get_origin

from fastapi import Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.params import Query
from fastapi.routing import APIRoute
from pydantic import BaseModel

from api.job_query import METADATA_PREFIX
from api.request_fields import wire_fields
from sft.explanations import MOST_PROBLEMS, find_nearest


async def check_parameters(request: Request) -> None:
    """Reject parameters that the route would ignore. A dependency of all routes. Raises RequestValidationError."""
    if not request.query_params:
        return
    route: APIRoute = request.scope["route"]
    known = _query_parameters(_RouteKey(route))
    problems = []
    for name, count in Counter(name for name, _ in request.query_params.multi_items()).items():
        if "metadata" in known and name.startswith(METADATA_PREFIX):
            takes_several = False
        elif name not in known:
            problems.append(_explain_unknown(name, request, route, known))
            takes_several = True
        else:
            takes_several = known[name]
        if count > 1 and not takes_several:
            problems.append(f"{name} must be given once, got {count} values")
        if len(problems) > MOST_PROBLEMS:  # a URL may have thousands, and each look-up of a similar name takes time
            break
    if problems:
        raise RequestValidationError(
            [{"type": "value_error", "loc": ("query",), "msg": text, "input": None} for text in problems]
        )


def body_fields(scope: Mapping[str, Any]) -> list[str]:
    """The names of the fields of the route's body; empty if it takes none."""
    route = scope.get("route")
    field = getattr(route, "body_field", None)
    model = field.field_info.annotation if field is not None else None
    return [*wire_fields(model)] if isinstance(model, type) and issubclass(model, BaseModel) else []


def _explain_unknown(name: str, request: Request, route: APIRoute, known: Mapping[str, bool]) -> str:
    problem = f"{name} is not a query parameter of {request.method} {request.url.path}"
    if nearest := find_nearest(name, known):
        return f"{problem}; did you mean {nearest}?"
    if name in body_fields({"route": route}):
        return f"{problem}; it is a field of the body"
    return f"{problem}; it takes {', '.join(known) or 'none'}"


class _RouteKey:
    """A hashable key for a route; routes compare by path and have no hash."""

    def __init__(self, route: APIRoute) -> None:
        self.route = route

    def __hash__(self) -> int:
        return hash(self.route.endpoint)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RouteKey) and other.route.endpoint is self.route.endpoint


@lru_cache(maxsize=256)
def _query_parameters(key: _RouteKey) -> dict[str, bool]:
    """The query parameters of a route and its dependencies, and whether each is a list."""
    parameters = [field for field in get_flat_params(key.route.dependant) if isinstance(field.field_info, Query)]
    return {field.alias: _is_list(field.field_info.annotation) for field in parameters}


def _is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list or any(map(_is_list, get_args(annotation)))
