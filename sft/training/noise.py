"""NEFTune (https://arxiv.org/abs/2310.05914): uniform noise on the input embeddings during training."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class EmbeddingNoise:
    """Adds alpha / sqrt(L D) * uniform(-1, 1) to the (B, T, D) embeddings, L being the length of a token's document.

    transformers' own NEFTune uses the batch's width T for L: with documents concatenated into one row the noise would
    shrink with their number, and with padding it would depend on the other rows. The paper uses the real length.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha
        self._lengths: Tensor | None = None  # L of each token; broadcasts to (B, T, 1)

    @contextmanager
    def attach(self, embeddings: nn.Module) -> Iterator[None]:
        """Add noise to this layer's output in training mode, inside the `with` block."""
        handle = embeddings.register_forward_hook(self._add)
        try:
            yield
        finally:
            handle.remove()

    def read_lengths(self, inputs: dict[str, Any]) -> None:
        """Read the documents' lengths from the batch that comes next."""
        if "cu_seq_lens_q" in inputs:
            lengths = inputs["cu_seq_lens_q"].diff()  # (documents,)
            tokens = inputs["input_ids"].shape[1]  # T, which the device would have to be asked for
            self._lengths = lengths.repeat_interleave(lengths, output_size=tokens)[None, :, None]  # (1, T, 1)
        elif "attention_mask" in inputs:
            self._lengths = inputs["attention_mask"].sum(dim=1)[:, None, None]  # (B, 1, 1)
        else:
            self._lengths = torch.tensor(inputs["input_ids"].shape[1])  # ()

    def _add(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if not module.training or self._lengths is None:
            return output
        size = self.alpha / (self._lengths.to(output.device) * output.shape[-1]).float().sqrt()
        return output + (torch.empty_like(output, dtype=torch.float32).uniform_(-1, 1) * size).to(output.dtype)
