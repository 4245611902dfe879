"""Explain invalid settings by the environment variables that hold them."""

import os

from tuneyard_cli.problems import UsageProblem

PREFIX = "TUNEYARD_"
DEVICES = "plan_devices"
_SHOWN = ("int", "float", "bool", "literal", "greater", "less")  # problems of values that can't be secrets


def explain_settings(error: Exception) -> UsageProblem | None:
    """Translate an error raised while the settings are read; None for any other error."""
    if not type(error).__module__.startswith("pydantic"):
        return None
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    if isinstance(error, SettingsError):
        field = next((name for name in _fields() if f'"{name}"' in str(error)), None)
        return UsageProblem(f"{_variable(field)} must be JSON, such as {_show_example(field)}") if field else None
    if not isinstance(error, ValidationError) or error.title != "Settings":
        return None
    from sft.explanations import explain_problems
    from sft.planning.devices import Card

    problems = []
    for problem in error.errors(include_url=False):
        field = str(problem["loc"][0]) if problem["loc"] else ""
        name = _variable(field) if field else ""
        if field == DEVICES:  # an object, whose parts are named; it holds no secret
            problems.append({**problem, "loc": (name, *problem["loc"][1:])})
            continue
        value = os.environ.get(name) if problem["type"].startswith(_SHOWN) else "..."
        problems.append({**problem, "loc": (name,) if name else (), "input": value})
    return UsageProblem(explain_problems(problems, [*Card.model_fields]))


def _show_example(field: str) -> str:
    return '{"lab": {"memory_gib": 48}}' if field == DEVICES else 'a list: ["a"]'


def _fields() -> list[str]:
    from jobs.settings import Settings

    return [*Settings.model_fields]


def _variable(field: str) -> str:
    from jobs.settings import Settings

    info = Settings.model_fields.get(field)
    alias = info.validation_alias if info else field
    return alias if isinstance(alias, str) else f"{PREFIX}{field.upper()}"
