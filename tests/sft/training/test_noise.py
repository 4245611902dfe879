"""NEFTune: how much noise there is, and where there is none."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from sft.training.noise import EmbeddingNoise
from sft.training.session import TrainingSession

Open = Callable[..., TrainingSession]


@pytest.mark.parametrize(
    ("inputs", "lengths"),
    [
        ({"input_ids": torch.zeros(1, 104), "cu_seq_lens_q": torch.tensor([0, 4, 104])}, [[4] * 4 + [100] * 100]),
        ({"attention_mask": torch.tensor([[1] * 52, [1] * 13 + [0] * 39])}, [[52] * 52, [13] * 52]),
        ({"input_ids": torch.zeros(2, 52)}, [[52] * 52] * 2),
    ],
)
def test_noise_is_as_large_as_each_documents_own_length_says(inputs: dict[str, Any], lengths: list[list[int]]) -> None:
    torch.manual_seed(0)
    embeddings = torch.nn.Embedding(8, 1000)
    ids = torch.zeros(len(lengths), len(lengths[0]), dtype=torch.int64)
    noise = EmbeddingNoise(alpha=5.0)
    clean = embeddings(ids)
    with noise.attach(embeddings):
        noise.read_lengths(inputs)
        added = (embeddings(ids) - clean).abs()  # (B, T, 1000)
        embeddings.eval()
        assert torch.equal(embeddings(ids), clean)
    embeddings.train()
    assert torch.equal(embeddings(ids), clean)
    limits = 5.0 / (torch.tensor(lengths) * 1000).sqrt()[..., None]
    assert (added <= limits * 1.001).all()
    torch.testing.assert_close(added.mean(dim=2), limits[..., 0] / 2, rtol=0.1, atol=0.0)


def test_noise_changes_training_alone_and_the_seed_decides_it(open_session: Open) -> None:
    def run(**fields: Any) -> tuple[float, list[float], float]:
        losses: list[float] = []
        session = open_session(
            on_event=lambda name, values: losses.append(values["loss"]) if name == "step" else None, **fields
        )
        before = session.evaluate()["eval_loss"]
        session.train()
        return before, losses, session.evaluate()["eval_loss"]

    plain, noisy = run(output="plain"), run(output="noisy", neftune_noise_alpha=5.0)
    assert noisy[0] == plain[0]
    assert all(math.isclose(a, b, rel_tol=0.5) and a != b for a, b in zip(noisy[1], plain[1], strict=True))
    assert run(output="again", neftune_noise_alpha=5.0) == noisy
    assert run(output="other", neftune_noise_alpha=5.0, seed=7)[1] != noisy[1]
