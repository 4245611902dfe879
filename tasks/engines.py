"""What turns the token ids of prompts into those of answers: one engine at a time, with one base model."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tasks.generation_work import GenerationWork, Key

if TYPE_CHECKING:
    from sft.generation.sequences import Sequence

MOST_TOKENIZERS = 12  # in memory; the one read first is removed for another


class Desk(Protocol):
    """Where the requests are, as an engine sees it."""

    @property
    def must_end(self) -> bool:
        """Whether the process is to end, so that nothing is answered any more."""

    def watch_arrivals(self) -> Callable[[], bool]:
        """A function that tells whether requests have come since this call."""

    def take_more(self, key: Key, group: list[GenerationWork]) -> list[GenerationWork]:
        """Requests with this key that are not in the group; none once one with another key waits."""


class Engine(Protocol):
    """Answers requests for one base model, those of a call together. `start` comes first."""

    @property
    def is_started(self) -> bool:
        """Whether it holds a model."""

    @property
    def is_exclusive(self) -> bool:
        """Whether nothing is answered while a job runs."""

    def start(self, work: GenerationWork) -> None:
        """Load the model that this request is for. Raises GenerationBusy if jobs leave no room."""

    def fits(self, work: GenerationWork) -> bool:
        """Whether it can answer this request without being started again."""

    def answer(self, group: list[GenerationWork], desk: Desk) -> None:
        """Generate for requests that share a model until they have ended, others wait, or the process is to end."""

    def end(self) -> None:
        """Free the memory."""


class Tokenizers:
    """The tokenizers of adapters and bases; the process that writes prompts has read them before."""

    def __init__(self) -> None:
        self._read: dict[Path, Any] = {}

    def find(self, work: GenerationWork) -> Any:
        """The tokenizer of a request's adapter or base."""
        from sft.models.loading import load_tokenizer

        folder = find_texts(work.base, work.adapter)
        if folder not in self._read:
            self._read[folder] = load_tokenizer(folder)
        found = self._read[folder]
        while len(self._read) > MOST_TOKENIZERS:
            del self._read[next(iter(self._read))]
        return found

    def clear(self) -> None:
        """Free the memory."""
        self._read.clear()

    def list_sequences(self, work: GenerationWork) -> "list[Sequence]":
        """The sequences of a request that have not ended; they are made with the first call."""
        from tasks.generation_sequences import make_sequences

        if not work.sequences:
            work.sequences = make_sequences(work, self.find(work))
        return [one for one in work.sequences if not one.is_finished]


def find_texts(base: Path, adapter: Path | None) -> Path:
    """The folder with tokenizer and chat template: the adapter's own, if it has any."""
    return adapter if adapter and (adapter / "tokenizer_config.json").is_file() else base
