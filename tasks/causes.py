"""What a job's error means: its code, its words, and whether another attempt may get over it."""

from typing import NamedTuple

from sft.errors import StackError, TuneyardError


class Cause(NamedTuple):
    """Why an attempt ended."""

    code: str
    message: str
    is_worth_retrying: bool


def explain(error: BaseException) -> Cause:
    """The cause of what a job raised."""
    if isinstance(error, TuneyardError):
        return Cause(error.code, str(error), isinstance(error, StackError))
    return Cause("internal_error", f"{type(error).__name__}: {error}", is_worth_retrying=False)
