"""`Sequence`: one answer while it is generated."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from sft.generation.sampling import Sampling, TokenChooser
from sft.generation.text import TextReader

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """What is new of an answer.

    Attributes:
        text: whole characters.
        tokens: for each of its tokens `{"token": id, "offset": characters before it, "logprob": ..., "top": ...}`; only
            where the request asks for log probabilities.
        finish: why the answer ends, with its last piece.
    """

    text: str
    tokens: list[dict[str, Any]]
    finish: Finish | None


@dataclass(eq=False)
class Sequence:
    """One answer to one prompt.

    Args:
        prompt: token ids.
        max_tokens: at most so many are generated.
        index: number of the answer among those of its request; each draws in its own way.
        ends: tokens that end the answer; they are not part of it.
        emit: called with each new piece.
        is_cancelled: asked once a token.
    """

    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    index: int
    ends: Collection[int]
    reader: TextReader
    emit: Callable[[Piece], None]
    is_cancelled: Callable[[], bool] = lambda: False
    generated: list[int] = field(default_factory=list)
    is_finished: bool = False
    _unsent: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._chooser = TokenChooser(self.sampling, self.index)

    @property
    def ids(self) -> list[int]:
        """Prompt and answer."""
        return [*self.prompt, *self.generated]

    @property
    def tokens_left(self) -> int:
        """How many tokens may still be generated."""
        return self.max_tokens - len(self.generated)

    def advance(self, logits: torch.Tensor) -> int:
        """Choose the next token, emit what is new, and return the token. `logits` is float32 of shape (V,)."""
        if self.is_cancelled():
            self.is_finished = True
            return 0
        token = self._chooser.choose(logits)
        self.take(token, None if token in self.ends else self._chooser.report(logits, token))
        return token

    def take(self, token: int, report: dict[str, Any] | None) -> None:
        """Add a token that was chosen for it, and emit what is new.

        Args:
            report: its `logprob`, and `top` with the most likely ones; None if the request asks for none.
        """
        self.generated.append(token)
        if token in self.ends:
            self._send(self.reader.finish(), "stop")
            return
        if report is not None:
            self._unsent.append({"token": token, "offset": self.reader.decoded, **report})
        text = self.reader.add(token)
        if self.reader.has_stopped:
            self._send(text, "stop")
        elif self.tokens_left <= 0:
            self._send(text + self.reader.finish(), "length")
        elif text:
            self._send(text, None)

    def _send(self, text: str, finish: Finish | None) -> None:
        finish = "stop" if self.reader.has_stopped else finish
        self.is_finished = finish is not None
        keep_all = self.is_finished and not self.reader.has_stopped
        sent = [one for one in self._unsent if keep_all or one["offset"] < self.reader.length]
        self._unsent = self._unsent[len(sent) :]
        self.emit(Piece(text, sent, finish))
