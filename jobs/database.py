"""Tuneyard's own database out of reach, told as every other part of the stack that is."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from sft.errors import StackError


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise StackError for whatever the database raises."""
    try:
        yield
    except SQLAlchemyError as error:
        raise StackError(
            f"Tuneyard's database can't be reached ({type(error).__name__}); see `tuneyard status`"
        ) from error
