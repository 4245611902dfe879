"""Makes chat templates deterministic: fixes the date and the random numbers that they use, and reports both."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DATE = datetime(2024, 7, 26)  # noqa: DTZ001 - the date Llama's own templates use without a clock
LIBRARY = "transformers.utils.chat_template_utils"
RANDOM = ("random", "lipsum")  # of Jinja
SEED = 0
VARYING = {
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
    """Render messages with the tokenizer's chat template, with the same result at any time.

    Args:
        varying: collects the keys of `VARYING` that apply to this template.
    """
    found: set[str] = set() if varying is None else varying
    with _same_draws(str(tokenizer.chat_template), found), _standing_clock(found):
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


class _Clock:
    """Replaces `datetime` for transformers' `strftime_now`."""

    def __init__(self, found: set[str]) -> None:
        self.found = found

    def now(self) -> datetime:
        self.found.add("clock")
        return DATE


@contextmanager
def _standing_clock(found: set[str]) -> Iterator[None]:
    """Patches the clock in transformers' module: a template gets only plain data by name, so no function of ours."""
    library: Any = sys.modules[LIBRARY]  # loaded with the tokenizer; the API has none and must not import it
    own = library.datetime
    library.datetime = _Clock(found)
    try:
        yield
    finally:
        library.datetime = own


@contextmanager
def _same_draws(template: str, found: set[str]) -> Iterator[None]:
    """Seeds Python's generator, which Jinja uses, and restores its state afterwards."""
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
