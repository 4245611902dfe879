"""Derives a flow's parameters from the model that reads them: Prefect builds its form from signature and docstring."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel

R = TypeVar("R")


def takes(model: type[BaseModel]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a function, which takes keyword arguments, the fields of a model as parameters, those without default first.

    They are flat, not nested in one object, so that waiting runs, schedules and clients of Prefect's API keep working
    when a field is added.
    """

    def declare(function: Callable[..., R]) -> Callable[..., R]:
        fields = dict(sorted(model.model_fields.items(), key=lambda item: not item[1].is_required()))
        parameters = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.is_required() else field.get_default(),
                annotation=field.annotation,
            )
            for name, field in fields.items()
        ]
        signature: Any = inspect.signature(function).replace(parameters=parameters)
        function.__signature__ = signature  # type: ignore[attr-defined]
        described = "\n".join(f"    {name}: {field.description}" for name, field in fields.items())
        function.__doc__ = f"{inspect.getdoc(function)}\n\nArgs:\n{described}\n"
        return function

    return declare
