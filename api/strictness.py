"""`strict`: whether what is found of a job before it is made is an error or a warning."""

from typing import Annotated

from fastapi import Query

Strict = Annotated[
    bool,
    Query(
        description="Refuse a job that names something missing or asks for what no worker can do, as far as that is "
        "known; otherwise the answer has `warnings` beside its other keys."
    ),
]
