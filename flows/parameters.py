"""Parameters of a flow, from the model that reads them: Prefect makes its form of the signature and the docstring."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel

R = TypeVar("R")


def takes(model: type[BaseModel]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Give a function, which takes values by keyword, the fields of a model as parameters, those without default first.

    They stay the flow's own parameters, none within another, so that runs which wait, schedules and what people have
    written against Prefect's API go on as they are when a field is added.
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
