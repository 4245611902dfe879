"""Training from a data file to a saved adapter, on a tiny model."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets.arrow_dataset import Column
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig as TrainerArguments
from trl import SFTTrainer

from sft.config import SFTConfig
from sft.data.tokenization import PreparedData
from sft.errors import InvalidConfig, ModelNotFound, TrainingDiverged
from sft.models.model_class import build_empty
from sft.training.arguments import MEMORY_SHARE, choose_heaviest_batch, needs_checkpointing
from sft.training.fake_step import Step
from sft.training.layout import Layout
from sft.training.session import TrainingSession
from sft.training.step_memory import measure_steps
from tests.tiny_models import measure_loss

Train = Callable[..., TrainingSession]


def test_loss_before_training_is_the_base_models(open_session: Train, model_path: Path, rows: PreparedData) -> None:
    base = AutoModelForCausalLM.from_pretrained(model_path).eval()
    expected = measure_loss(base, rows.load_eval())
    assert open_session().evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_start_is_evaluated_after_training_as_before_it(open_session: Train) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    session = open_session(on_event=lambda name, values: events.append((name, values)))
    before = session.evaluate_start()
    session.train()
    trained = session.evaluate()
    after = session.evaluate_start()

    assert session.keeps_start
    assert after["eval_loss"] == before["eval_loss"] != trained["eval_loss"]
    told = [values["step"] for name, values in events if name == "evaluate"]
    assert told == [0, session.trainer.state.global_step, 0]


def test_a_start_that_is_gone_is_not_made_up(open_session: Train) -> None:
    session = open_session(use_lora=False)
    session.evaluate_start()
    session.train()

    assert not session.keeps_start
    with pytest.raises(RuntimeError, match="before training"):
        session.evaluate_start()


def test_training_learns_and_tells_of_every_step(open_session: Train) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    session = open_session(on_event=lambda name, values: events.append((name, values)), num_epochs=6.0)
    before = session.evaluate()["eval_loss"]
    result = session.train()
    assert session.evaluate()["eval_loss"] < 0.7 * before
    train_rows = session.trainer.train_dataset
    steps = 6 * math.ceil(len(train_rows) / 2)
    assert (result["steps"], result["tokens"]) == (steps, 6 * sum(train_rows["length"]))
    assert result["tokens_per_second"] == pytest.approx(result["tokens"] / result["train_seconds"])
    assert result["peak_memory_bytes"] > 0

    names = [name for name, _ in events]
    assert names[0] == "evaluate"
    assert names[1] == "begin"
    assert names[-2:] == ["end", "evaluate"]
    begin = dict(events)["begin"]
    assert (begin["total_steps"], begin["dtype"], begin["layout"]) == (steps, "float32", "documents")
    assert 0 < begin["trainable_parameters"] < begin["parameters"]
    told = [values for name, values in events if name == "step"]
    assert [values["step"] for values in told] == list(range(1, steps + 1))
    assert (told[-1]["percent"], told[-1]["epoch"], told[-1]["eta_seconds"]) == (100.0, 6.0, 0.0)
    assert max(values["learning_rate"] for values in told) == pytest.approx(1e-2)
    assert all(values["loss"] > 0 and values["grad_norm"] > 0 for values in told)
    assert result["train_loss"] == pytest.approx(sum(values["loss"] for values in told) / steps, rel=1e-4)
    logged = [values["step"] for name, values in events if name == "log"]
    assert logged == list(range(2, steps + 1, 2))
    assert names.count("epoch") == 6


@pytest.mark.parametrize("layout", ["documents", "padded"])
def test_every_step_is_stock_trls_step(
    open_session: Train, model_path: Path, rows: PreparedData, tmp_path: Path, layout: str, monkeypatch: Any
) -> None:
    """Two batches a step, of different numbers of supervised tokens: losses, gradient norms and weights agree."""
    monkeypatch.setattr(
        "sft.training.session.choose_layout", lambda model, *options: layout
    ) if layout == "padded" else None
    steps: list[dict[str, Any]] = []
    session = open_session(
        use_lora=False,
        gradient_accumulation_steps=2,
        max_grad_norm=0.5,
        num_epochs=2.0,
        on_event=lambda name, values: steps.append(values) if name == "step" else None,
    )
    session.trainer.args.train_sampling_strategy = "random"  # `padded` would group rows by length
    session.train()

    arguments = TrainerArguments(
        output_dir=str(tmp_path / "stock"),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        num_train_epochs=2,
        warmup_steps=0,  # 0.03 of four steps, rounded down
        weight_decay=0.001,
        max_grad_norm=0.5,
        lr_scheduler_type="cosine",
        bf16=False,
        activation_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        seed=42,
        max_length=None,
        dataloader_pin_memory=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    stock = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model_path),
        args=arguments,
        train_dataset=rows.load_train(),
        processing_class=AutoTokenizer.from_pretrained(model_path),
    )
    stock.train()
    logged = [entry for entry in stock.state.log_history if "loss" in entry]
    assert len(steps) == len(logged) == 4
    for mine, reference in zip(steps, logged, strict=True):
        assert mine["loss"] == pytest.approx(reference["loss"], rel=1e-4)
        assert mine["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-3)
        assert mine["learning_rate"] == pytest.approx(reference["learning_rate"])
    for mine_weight, weight in zip(session.trainer.model.parameters(), stock.model.parameters(), strict=True):
        torch.testing.assert_close(mine_weight, weight, rtol=1e-2, atol=1e-3)


LOAD_ELSEWHERE = """
import json, sys, torch
from datasets.arrow_dataset import Column
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
base, folder = sys.argv[1:]
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
ids = tokenizer.apply_chat_template([{"role": "user", "content": "Count to 3."}], add_generation_prompt=True)
ids = ids["input_ids"]
with torch.no_grad():
    logits = model(input_ids=torch.tensor([ids])).logits[0, -1].tolist()
answer = model.generate(
    torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), max_new_tokens=60, do_sample=False,
    generation_config=GenerationConfig.from_pretrained(folder),
)
print(json.dumps({"logits": logits, "answer": tokenizer.decode(answer[0, len(ids):]), "eos": tokenizer.eos_token}))
"""


def test_the_saved_adapter_works_where_this_project_is_unknown(
    open_session: Train, model_path: Path, tmp_path: Path
) -> None:
    session = open_session(num_epochs=8.0, batch_size=3, validation_split=0.0, template_name="qwen")
    session.train()
    adapter = session.save(tmp_path / "adapter")
    assert {path.name for path in adapter.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".adapter")] == []
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    run = subprocess.run(
        [sys.executable, "-I", "-c", LOAD_ELSEWHERE, str(model_path), str(adapter)],
        capture_output=True,
        text=True,
        cwd="/",
        check=True,
    )
    elsewhere = json.loads(run.stdout.splitlines()[-1])
    ids = session.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Count to 3."}], add_generation_prompt=True
    )["input_ids"]
    session.trainer.model.eval()
    with torch.no_grad():
        logits = session.trainer.model(input_ids=torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(torch.tensor(elsewhere["logits"]), logits, rtol=1e-4, atol=1e-4)
    assert elsewhere["answer"].startswith("0 1 2 ")
    assert elsewhere["answer"].endswith("<|im_end|>")
    assert elsewhere["eos"] == "<|im_end|>"


def test_training_goes_on_from_an_adapter(open_session: Train, tmp_path: Path) -> None:
    first = open_session(num_epochs=3.0)
    first.train()
    learned = first.evaluate()["eval_loss"]
    adapter = first.save(tmp_path / "adapter")
    second = open_session("second", adapter_path=str(adapter), num_epochs=3.0)
    assert second.evaluate()["eval_loss"] == pytest.approx(learned, rel=1e-5)
    second.train()
    assert second.evaluate()["eval_loss"] < learned


def test_a_merged_model_is_the_adapted_one(open_session: Train, tmp_path: Path, rows: PreparedData) -> None:
    session = open_session(save_merged_model=True, num_epochs=2.0)
    session.train()
    expected = session.evaluate()["eval_loss"]
    session.save(tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert not isinstance(merged, PeftModel)
    assert measure_loss(merged, rows.load_eval()) == pytest.approx(expected, rel=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").eos_token == "<|im_end|>"


def test_full_fine_tuning_saves_the_whole_model(open_session: Train, tmp_path: Path, rows: PreparedData) -> None:
    session = open_session(use_lora=False, learning_rate=1e-3)
    before = session.evaluate()["eval_loss"]
    session.train()
    after = session.evaluate()["eval_loss"]
    assert after < before
    saved = AutoModelForCausalLM.from_pretrained(session.save(tmp_path / "model")).eval()
    assert measure_loss(saved, rows.load_eval()) == pytest.approx(after, rel=1e-4)


def test_a_run_that_was_cut_off_ends_where_a_whole_one_does(open_session: Train, tmp_path: Path) -> None:
    whole = open_session("whole", num_epochs=2.0)
    whole.train()

    def die(name: str, values: dict[str, Any]) -> None:
        if name == "step" and values["step"] == 6:
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        open_session("cut", num_epochs=2.0, save_steps=2, on_event=die).train()
    checkpoints = tmp_path / "cut" / "checkpoints"
    (checkpoints / "checkpoint-4" / "adapter_model.safetensors").write_bytes(b"torn")
    steps: list[int] = []
    resumed = open_session(
        "cut", num_epochs=2.0, on_event=lambda name, values: steps.append(values["step"]) if name == "step" else None
    )
    assert resumed.train()["steps"] == 8
    assert steps == [3, 4, 5, 6, 7, 8]
    for mine, reference in zip(resumed.trainer.model.parameters(), whole.trainer.model.parameters(), strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_no_number_stops_training_at_its_step(open_session: Train) -> None:
    session = open_session()
    session.trainer.model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output * math.nan)
    with pytest.raises(TrainingDiverged, match=r"the loss became nan at step 1 of 4; no weight had been changed yet"):
        session.train()


def test_packing_learns_from_every_row(open_session: Train) -> None:
    session = open_session(packing=True, max_seq_length=128, batch_size=1)
    assert len(session.trainer.train_dataset) < 9
    before = session.evaluate()["eval_loss"]
    result = session.train()
    assert result["tokens"] == sum(sum(lengths) for lengths in session.trainer.train_dataset["seq_lengths"])
    assert session.evaluate()["eval_loss"] < before


def test_recomputed_activations_change_nothing(open_session: Train) -> None:
    kept, recomputed = open_session("kept"), open_session("recomputed", gradient_checkpointing=True)
    assert recomputed.train()["train_loss"] == pytest.approx(kept.train()["train_loss"], rel=1e-4)
    assert recomputed.evaluate()["eval_loss"] == pytest.approx(kept.evaluate()["eval_loss"], rel=1e-4)


@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"use_lora": False}], ids=str)
@pytest.mark.parametrize("layout", ["documents", "trl"])
def test_activations_are_recomputed_when_memory_asks(model_path: Path, layout: Layout, fields: dict[str, Any]) -> None:
    config = SFTConfig(base_model="tiny", dataset_name="x", dataset_format="alpaca", batch_size=1, **fields)
    kind = "cpu" if layout == "documents" else "cuda"
    step = Step((1000,), 0.5, layout, kind, torch.float32, checkpointing=False)
    empty = build_empty(model_path)
    [need] = measure_steps(empty, config, [step]) or []
    loaded = 0 if config.use_lora else 4 * sum(weight.numel() for weight in empty.parameters())

    def recomputes(free_bytes: float) -> bool:
        return needs_checkpointing(config, lambda: empty, layout, [10, 1000], 0.5, torch.float32, kind, int(free_bytes))

    enough = (need.held - loaded) / MEMORY_SHARE[kind]
    assert recomputes(enough * 0.999)
    assert not recomputes(enough * 1.001)
    assert not recomputes(enough * 100)


@pytest.mark.parametrize(
    ("layout", "kind", "fields", "tokens"),
    [
        ("documents", "cpu", {}, 30 + 20),
        ("padded", "cpu", {}, 2 * 30),
        ("trl", "cuda", {"batch_size": 8}, 3 * 30),
        ("documents", "cuda", {"max_batch_tokens": 40}, 40),
        ("padded", "cuda", {"max_batch_tokens": 8}, 30),
        ("documents", "cuda", {"packing": True}, 10 + 30 + 20),
        ("documents", "cuda", {"packing": True, "max_seq_length": 25}, 2 * 25),
        ("padded", "cpu", {"packing": True, "max_seq_length": 25}, 2 * 25),
        ("padded", "cuda", {"packing": True, "max_seq_length": 25}, 25),  # a mask of (T, T): one row at a time
        ("trl", "cpu", {"packing": True, "max_seq_length": 25}, 25),
    ],
)
def test_the_heaviest_batch_is_that_of_the_longest_rows(
    layout: Layout, kind: str, fields: dict[str, Any], tokens: int
) -> None:
    values = {"dataset_name": "x", "dataset_format": "alpaca", "batch_size": 2, "max_seq_length": 64} | fields
    assert sum(choose_heaviest_batch(SFTConfig(base_model="tiny", **values), layout, [10, 30, 20], kind)) == tokens


def test_bf16_learns_the_same(open_session: Train) -> None:
    exact, narrow = open_session("a"), open_session("b", mixed_precision="bf16")
    assert narrow.evaluate()["eval_loss"] == pytest.approx(exact.evaluate()["eval_loss"], rel=2e-2)
    exact.train()
    narrow.train()
    assert narrow.evaluate()["eval_loss"] == pytest.approx(exact.evaluate()["eval_loss"], rel=5e-2)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"lora_target_modules": "q_proj,qq_proj"},
            InvalidConfig,
            "lora_target_modules has no layer 'qq_proj' to adapt",
        ),
        ({"lora_target_modules": "lm_head"}, InvalidConfig, "lora_target_modules has no layer 'lm_head' to adapt"),
        (
            {"optimizer_type": "adam_best"},
            InvalidConfig,
            "optimizer_type 'adam_best' is not known; known are adamw_torch",
        ),
        ({"adapter_path": "/nowhere"}, ModelNotFound, "adapter_path /nowhere has no adapter_config.json"),
    ],
)
def test_what_this_model_can_not_do_is_refused(
    open_session: Train, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_session(**fields)


def test_the_peak_of_memory_is_that_of_the_process_alone_whoever_started_it() -> None:
    held = bytearray(b"x") * (3 << 29)  # 1.5 GiB, all of it touched
    code = "from sft.training.arguments import measure_peak_memory; print(measure_peak_memory())"
    project = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=project, check=True, capture_output=True, text=True)

    assert 50e6 < int(done.stdout) < len(held)


@pytest.mark.parametrize("fields", [{}, {"max_batch_tokens": 200}], ids=str)
def test_rows_are_not_looked_at_one_by_one_before_the_first_step(
    open_session: Callable[..., TrainingSession], monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    """That takes 25 s for a million rows."""
    take = Column.__getitem__

    def take_several(column: Column, key: Any) -> Any:
        assert not isinstance(key, int), "a row's length is read by itself"
        return take(column, key)

    monkeypatch.setattr(Column, "__getitem__", take_several)
    monkeypatch.setattr(Column, "__iter__", lambda column: pytest.fail("the rows' lengths are read one by one"))
    session = open_session(gradient_checkpointing="auto", **fields)
    assert next(iter(session.trainer.get_train_dataloader()))["input_ids"].numel()
