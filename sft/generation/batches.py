"""Generates several sequences at once by one call of transformers' `generate`.

A batch runs until all of its sequences have ended, or until others wait and it has run for `JOIN_TOKENS`: then the
caller starts another one with all of them, whose first step reads prompts and answers so far again.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria

from sft.generation.sequences import Sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel

JOIN_TOKENS = 32


class _Chooser(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed here
    """Lets each sequence choose its token, and leaves `generate`, which takes the most likely one, no other."""

    def __init__(self, sequences: list[Sequence], pad: int) -> None:
        self._sequences = sequences
        self._pad = pad
        self.steps = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Take logits of shape (B, V), return as many that are 0 for the chosen token and -inf for the others."""
        self.steps += 1
        chosen = [
            self._pad if sequence.is_finished else sequence.advance(logits)
            for sequence, logits in zip(self._sequences, scores, strict=True)
        ]
        places = torch.tensor(chosen, device=scores.device)[:, None]
        return torch.full_like(scores, float("-inf")).scatter_(1, places, 0.0)


class _Ender(StoppingCriteria):  # type: ignore[misc]  # see above
    """Ends what has finished, or all when `is_wanted_elsewhere`."""

    def __init__(self, sequences: list[Sequence], is_wanted_elsewhere: Callable[[], bool]) -> None:
        self._sequences = sequences
        self._is_wanted_elsewhere = is_wanted_elsewhere

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Whether each row has ended, of shape (B,)."""
        has_ended = [sequence.is_finished for sequence in self._sequences]
        if not all(has_ended) and self._is_wanted_elsewhere():
            has_ended = [True] * len(has_ended)
        return torch.tensor(has_ended, device=input_ids.device)


def run_batch(
    model: "PreTrainedModel",
    sequences: list[Sequence],
    pad: int,
    has_news: Callable[[], bool] = lambda: False,
    must_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Generate tokens of all sequences that have not finished.

    Args:
        pad: token that stands in front of shorter sequences, where nothing attends to it.
        has_news: whether others wait; then the batch ends after `JOIN_TOKENS`.
        must_stop: whether to end at once.
    """
    live = [sequence for sequence in sequences if not sequence.is_finished]
    if not live:
        return
    width = max(len(sequence.ids) for sequence in live)
    ids = torch.full((len(live), width), pad)  # (B, T)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(live):
        ids[row, width - len(sequence.ids) :] = torch.tensor(sequence.ids)
        mask[row, width - len(sequence.ids) :] = 1
    chooser = _Chooser(live, pad)

    def is_wanted_elsewhere() -> bool:
        return must_stop() or (chooser.steps >= JOIN_TOKENS and has_news())

    settings = GenerationConfig(
        max_new_tokens=max(sequence.tokens_left for sequence in live), do_sample=False, pad_token_id=pad, use_cache=True
    )
    with torch.inference_mode():
        model.generate(
            ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=settings,
            logits_processor=[chooser],
            stopping_criteria=[_Ender(live, is_wanted_elsewhere)],
        )
