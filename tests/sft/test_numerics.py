"""The same numbers as stock TRL, over whole runs; and the same bits for the same seed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig as TrainerArguments
from trl import SFTTrainer

from sft.adapting.adapters import add_adapter
from sft.config import SFTConfig, count_warmup_steps
from sft.data.tokenization import prepare
from sft.models.hardware import Hardware
from sft.models.loading import quiet_transformers
from sft.training.session import TrainingSession
from tests.tiny_models import save_tiny_model
from tests.varlen_reference import CALLS, register_varlen_reference

Open = Callable[..., TrainingSession]


class GradientRecorder(TrainerCallback):  # type: ignore[misc]
    """Keeps the gradient of all that is trained, before each optimizer step."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        grads = [weight.grad.flatten().clone() for weight in model.parameters() if weight.requires_grad]
        self.gradients.append(torch.cat(grads))


@pytest.mark.parametrize(
    ("attention", "kind", "seed", "steps", "rest"),
    [
        *(("auto", "llama", seed, 50, 0.9) for seed in range(3)),
        *(("auto", kind, 0, 10, 0.98) for kind in ("qwen2", "gemma", "gpt2")),
        *(("varlen", kind, 0, 10, 0.98) for kind in ("llama", "qwen2", "gemma", "gemma3", "gpt2")),
    ],
)
def test_every_step_is_that_of_stock_trl(
    open_session: Open,
    alpaca_file: Path,
    make_config: Callable[..., SFTConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attention: str,
    kind: str,
    seed: int,
    steps: int,
    rest: float,
) -> None:
    """In fp32 each step's loss is within 1e-4 of TRL's, and the adapter's gradient points the same way.

    With `varlen` the step is that of a GPU, whose attention kernel a reference stands in for.
    """
    if attention == "varlen":
        register_varlen_reference()
        monkeypatch.setattr("sft.training.session.inspect_hardware", lambda: Hardware(1, 2, False))
        CALLS.clear()
    model_path = save_tiny_model(kind, tmp_path / kind)
    fields: dict[str, Any] = {
        "seed": seed,
        "max_steps": steps,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-3,
        "attn_implementation": attention,
    }
    losses: list[float] = []
    mine, stock_gradients = GradientRecorder(), GradientRecorder()
    session = open_session(
        model=model_path,
        on_event=lambda name, values: losses.append(values["loss"]) if name == "step" else None,
        **fields,
    )
    assert session.trainer.layout == "documents"
    config = make_config(**fields)
    model, adaptation = add_adapter(AutoModelForCausalLM.from_pretrained(model_path), config)
    arguments = TrainerArguments(
        output_dir=str(tmp_path / "stock"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-3,
        max_steps=steps,
        warmup_steps=count_warmup_steps(steps, 0.03),
        weight_decay=0.001,
        max_grad_norm=0.3,
        lr_scheduler_type="cosine",
        bf16=False,
        activation_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        seed=seed,
        max_length=None,
        dataloader_pin_memory=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    with quiet_transformers():
        stock = SFTTrainer(
            model,
            args=arguments,
            train_dataset=prepare(config, model_path, alpaca_file, tmp_path / "cache").load_train(),
            processing_class=AutoTokenizer.from_pretrained(model_path),
            peft_config=adaptation.settings,
        )
        stock.model.load_state_dict(session.trainer.model.state_dict())  # the same first adapter
        session.trainer.add_callback(mine)
        stock.add_callback(stock_gradients)
        session.train()
        stock.train()

    if attention == "varlen":  # both layers of every batch went through the kernel, each batch in one call
        assert len(CALLS) > 2 * 2 * steps
        assert {tuple(call["window"]) for call in CALLS} >= {(15, 0) if kind == "gemma3" else (-1, 0)}
    expected = [entry["loss"] for entry in stock.state.log_history if "loss" in entry]
    assert len(losses) == len(expected) == steps
    assert losses == pytest.approx(expected, rel=1e-4)
    assert expected[-1] < rest * expected[0]
    cosines = [
        cosine_similarity(found, wanted, dim=0).item()
        for found, wanted in zip(mine.gradients, stock_gradients.gradients, strict=True)
    ]
    assert len(cosines) == steps
    assert min(cosines) >= 0.9999


def test_accumulated_batches_are_one_large_batch(open_session: Open) -> None:
    fields: dict[str, Any] = {"validation_split": 0.0, "num_epochs": 3.0}
    large = open_session("large", batch_size=12, **fields)
    small = open_session("small", batch_size=3, gradient_accumulation_steps=4, **fields)
    assert small.train()["train_loss"] == pytest.approx(large.train()["train_loss"], rel=1e-5)
    for mine, reference in zip(small.trainer.model.parameters(), large.trainer.model.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("fields", [{}, {"max_batch_tokens": 100}, {"packing": True}])
def test_a_seed_gives_the_same_bits_again(open_session: Open, tmp_path: Path, fields: dict[str, Any]) -> None:
    def train(output: str, seed: int) -> bytes:
        session = open_session(
            output, seed=seed, lora_dropout=0.2, neftune_noise_alpha=5.0, validation_split=0.0, **fields
        )
        session.train()
        return (session.save(tmp_path / output / "adapter") / "adapter_model.safetensors").read_bytes()

    torch.set_num_threads(1 if fields else 2)
    first = train("first", 1)
    assert train("second", 1) == first
    assert train("third", 2) != first
