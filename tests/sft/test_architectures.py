"""Real architectures, from a data file to a falling loss, on the fast path and on the padded one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from sft.data.tokenization import prepare
from sft.models.loading import quiet_transformers
from sft.training.layout import choose_layout
from sft.training.session import TrainingSession
from tests.tiny_models import measure_loss, save_tiny_model

Open = Callable[..., TrainingSession]

KINDS = ["llama", "qwen2", "gemma", "gemma3", "gpt2"]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("architectures")

    def find(kind: str) -> Path:
        return folder / kind if (folder / kind).exists() else save_tiny_model(kind, folder / kind)

    return find


def train(open_session: Open, output: str, **fields: Any) -> tuple[TrainingSession, list[float], list[float]]:
    steps: list[float] = []
    session = open_session(
        output, on_event=lambda name, values: steps.append(values["loss"]) if name == "step" else None, **fields
    )
    before = session.evaluate()["eval_loss"]
    session.train()
    return session, steps, [before, session.evaluate()["eval_loss"]]


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_the_fast_path_is_the_padded_one(
    open_session: Open, model_of: Callable[[str], Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields: dict[str, Any] = {"model": model_of(kind), "num_epochs": 4.0, "learning_rate": 5e-3, "batch_size": 3}
    fast, losses, evaluated = train(open_session, "fast", **fields)
    assert fast.trainer.layout == "documents"
    assert evaluated[1] < 0.9 * evaluated[0]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])

    monkeypatch.setattr("sft.training.session.choose_layout", lambda model, *options: "padded")
    monkeypatch.setattr("sft.training.arguments.SAMPLING", {"padded": "random"})  # the same batches
    padded, expected, expected_evaluated = train(open_session, "padded", **fields)
    assert padded.trainer.layout == "padded"
    assert losses == pytest.approx(expected, rel=1e-4)
    assert evaluated == pytest.approx(expected_evaluated, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "gpt2"])
@pytest.mark.parametrize(
    "fields",
    [
        {"use_dora": True},
        {"use_rslora": True, "lora_dropout": 0.1},
        {"loraplus_lr_ratio": 4.0},
        {"neftune_noise_alpha": 5.0},
        {"use_lora": False, "learning_rate": 2e-3},
        {"packing": True, "batch_size": 1},
        {"max_batch_tokens": 120},
        {"gradient_checkpointing": True},
        {"train_on_prompt": True, "gradient_accumulation_steps": 2},
        {"eval_steps": 2, "early_stopping_patience": 2},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_every_method_learns_and_what_is_saved_is_what_was_trained(
    open_session: Open, model_of: Callable[[str], Path], alpaca_file: Path, tmp_path: Path, kind: str, fields: Any
) -> None:
    model = model_of(kind)
    settings = {"num_epochs": 4.0, "learning_rate": 5e-3, "batch_size": 3, "save_merged_model": True} | fields
    session, _, (before, after) = train(open_session, "out", model=model, **settings)
    assert after < 0.95 * before

    folder = session.save(tmp_path / "saved")
    held_out = prepare(session.config, model, alpaca_file, tmp_path / "cache").load_eval()
    assert held_out is not None
    if session.config.use_lora:
        with quiet_transformers():
            adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(folder)).eval()
        assert measure_loss(adapted, held_out) == pytest.approx(after, rel=1e-4)
        folder = tmp_path / "merged"
    assert measure_loss(AutoModelForCausalLM.from_pretrained(folder).eval(), held_out) == pytest.approx(after, rel=1e-3)


def test_gemma2s_capped_logits_are_learned_from_as_they_are(
    open_session: Open, model_of: Callable[[str], Path]
) -> None:
    """The cap bends the logits after the head, which the fast path does not know: TRL's path is taken."""
    session, losses, evaluated = train(
        open_session, "out", model=model_of("gemma2"), num_epochs=4.0, learning_rate=5e-3, batch_size=3
    )
    assert evaluated[1] < 0.9 * evaluated[0]
    assert losses[-1] < losses[0]
    assert session.trainer.layout == "trl"


@pytest.mark.parametrize("kind", KINDS)
def test_a_document_has_the_logits_it_has_alone_whatever_its_neighbours(
    model_of: Callable[[str], Path], kind: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_of(kind)).eval()
    assert choose_layout(model) == "documents"
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(3, 300, (length,), generator=generator).tolist() for length in (31, 40, 9)]
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)

    def compute_logits(texts: list[list[int]]) -> list[torch.Tensor]:
        batch = dict(collate([{"input_ids": ids, "labels": ids} for ids in texts]))
        batch.pop("labels")
        with torch.no_grad():
            logits = model(**batch, use_cache=False).logits[0]
        return list(logits.split([len(ids) for ids in texts]))

    packed = compute_logits(documents)
    for found, ids in zip(packed, documents, strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)
    changed = compute_logits([documents[0][::-1], *documents[1:]])
    assert not torch.equal(changed[0], packed[0])
    assert torch.equal(changed[1], packed[1])
    assert torch.equal(changed[2], packed[2])
