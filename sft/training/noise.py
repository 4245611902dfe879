"""NEFTune (https://arxiv.org/abs/2310.05914): noise on the input embeddings while training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EmbeddingNoise:
    """Adds uniform noise of at most alpha / sqrt(L D) to the embeddings of each document of L tokens.

    transformers' own NEFTune takes the width of the batch for L: with documents laid end to end in one row the noise
    would shrink with their number, with padding it would depend on the neighbours. The paper takes the real length.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._lengths: Tensor | None = None  # of the token's document, or anything that broadcasts to (B, T, 1)

    @contextmanager
    def attach(self, embeddings: nn.Module) -> Iterator[None]:
        """Noise on what this layer gives in training mode, within the block."""
        handle = embeddings.register_forward_hook(self._add)
        try:
            yield
        finally:
            handle.remove()

    def read_lengths(self, inputs: dict[str, Any]) -> None:
        """Take the documents' lengths from the batch about to be seen."""
        if "cu_seq_lens_q" in inputs:
            lengths = inputs["cu_seq_lens_q"].diff()
            self._lengths = lengths.repeat_interleave(lengths)[None, :, None]
        elif "attention_mask" in inputs:
            self._lengths = inputs["attention_mask"].sum(dim=1)[:, None, None]
        else:
            self._lengths = torch.tensor(inputs["input_ids"].shape[1])

    def _add(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if not module.training or self._lengths is None:
            return output
        size = self.alpha / (self._lengths.to(output.device) * output.shape[-1]).float().sqrt()
        return output + (torch.empty_like(output, dtype=torch.float32).uniform_(-1, 1) * size).to(output.dtype)
