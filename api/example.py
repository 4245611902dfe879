"""`Example`: the examples of one operation in the OpenAPI document."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Example:
    """Examples of one operation. `errors` are the statuses beyond those of every operation."""

    summary: str | None = None
    requests: dict[str, Any] = field(default_factory=dict)
    response: Any = None
    errors: tuple[int, ...] = ()
    other_responses: dict[str, Any] = field(default_factory=dict)  # by title
