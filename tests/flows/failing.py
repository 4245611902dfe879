"""A flow that fails, or ends in a state that it has chosen."""

from typing import Any

from prefect import flow, task
from prefect.client.schemas.objects import State
from prefect.states import Cancelled

from sft.errors import InvalidDataset
from tasks.journal import show_log_lines

ERRORS = {"invalid dataset": InvalidDataset("row 3: no answer"), "bug": KeyError("heads")}


@task
def fail(kind: str) -> None:
    """Raise what was asked for."""
    raise ERRORS[kind]


@flow(name="failing")
def failing(kind: str) -> State[Any] | None:
    """Fail, unless a state is asked for."""
    show_log_lines()
    if kind in ERRORS:
        fail(kind)
    return Cancelled(name="Unchanged", message="as it was")
