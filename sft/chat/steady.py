"""Chat templates write the same text on any day: what they read of the clock and draw at random is fixed, and said."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = datetime(2024, 7, 26)  # noqa: DTZ001 - what Llama's own templates write where they have no clock
LIBRARY = "transformers.utils.chat_template_utils"
RANDOM = ("random", "lipsum")  # of Jinja
SEED = 0
TOLD = {
    "clock": (
        f"the chat template writes the present date: rows have {DATE:%d %b %Y} in its place, so that the same job has "
        "the same tokens on any day; a model that is asked later sees that day's date"
    ),
    "random": (
        "the chat template draws at random: each row is written with the same draws, so that the same job has the same "
        "tokens whenever it runs"
    ),
}


def write_steadily(
    tokenizer: "PreTrainedTokenizerBase", messages: Any, varying: set[str] | None = None, **options: Any
) -> str:
    """What the tokenizer's chat template writes, the same whenever it is asked.

    Args:
        varying: gets the keys of `TOLD` that hold for this template.
    """
    found: set[str] = set() if varying is None else varying
    with _same_draws(str(tokenizer.chat_template), found), _standing_clock(found):
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


class _Clock:
    """Stands for `datetime` where transformers' `strftime_now` asks for the present."""

    def __init__(self, found: set[str]) -> None:
        self.found = found

    def now(self) -> datetime:
        self.found.add("clock")
        return DATE


@contextmanager
def _standing_clock(found: set[str]) -> Iterator[None]:
    """What a template is given by name becomes plain data, so that it can be given no other function."""
    library: Any = sys.modules[LIBRARY]  # which the tokenizer has loaded; the API, which has none, must not
    own = library.datetime
    library.datetime = _Clock(found)
    try:
        yield
    finally:
        library.datetime = own


@contextmanager
def _same_draws(template: str, found: set[str]) -> Iterator[None]:
    """Jinja draws by Python's own generator, which goes on afterwards as if nothing had been drawn."""
    if not any(name in template for name in RANDOM):
        yield
        return
    state = random.getstate()
    random.seed(SEED)
    before = random.getstate()
    try:
        yield
        if random.getstate() != before:
            found.add("random")
    finally:
        random.setstate(state)
