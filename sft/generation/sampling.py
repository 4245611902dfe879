"""How the next token of a sequence is chosen, and the log probabilities that are reported with it."""

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Sampling:
    """What a request asks for.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: the smallest set of most likely tokens whose probabilities sum to this is drawn from.
        seed: of the draws; None for another one each time.
        logprobs: number of most likely tokens to report beside each token; None to report nothing.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    logprobs: int | None = None


class TokenChooser:
    """Chooses the tokens of one sequence; it has a random generator of its own."""

    def __init__(self, sampling: Sampling, index: int = 0) -> None:
        self.sampling = sampling
        self._random = torch.Generator()
        if sampling.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed((sampling.seed + index) % 2**63)

    def choose(self, logits: torch.Tensor) -> int:
        """Choose a token.

        Args:
            logits: float32 of shape (V,), on any device.
        """
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        logits = logits.cpu()
        # In double precision, so that the smallest temperatures divide without an infinity.
        chances = torch.softmax((logits.double() - logits.max()) / self.sampling.temperature, -1)
        if self.sampling.top_p < 1:
            ordered, places = chances.sort(descending=True)
            is_left_out = ordered.cumsum(-1) - ordered >= self.sampling.top_p  # the first is always kept
            chances[places[is_left_out]] = 0
        return int(torch.multinomial(chances, 1, generator=self._random))

    def report(self, logits: torch.Tensor, token: int) -> dict[str, Any] | None:
        """The log probability of the token and of the most likely ones; None if the request asks for none.

        They are the model's own, before temperature and top_p.
        """
        if self.sampling.logprobs is None:
            return None
        found = torch.log_softmax(logits, -1)
        values, tokens = found.topk(min(self.sampling.logprobs, len(found)))
        return {"logprob": float(found[token]), "top": [*zip(tokens.tolist(), values.tolist(), strict=True)]}
