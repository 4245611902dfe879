"""One architecture from a tiny random model to a saved adapter, and what is wrong with it, if anything."""

import json
import os
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import AutoConfig

from sft.config import SFTConfig
from sft.data.tokenization import prepare
from sft.errors import TuneyardError
from sft.models.loading import quiet_transformers
from sft.models.model_class import build_empty, find_model_class
from sft.planning.shape import measure_shape
from sft.training.session import TrainingSession
from tests.sweep.tiny import REASONS, build_model
from tests.tiny_models import build_tokenizer, measure_loss

ROWS = [{"instruction": f"Say the number {n}.", "output": f"The number is {n} and no other."} for n in range(8)]
CONFIG = {
    "base_model": "tiny",
    "dataset_name": "rows",
    "dataset_format": "alpaca",
    "template_name": "chatml",
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_seq_length": 128,
    "max_steps": 4,
    "learning_rate": 5e-3,
    "lora_r": 2,
    "mixed_precision": "none",
    "validation_split": 0.25,
    "save_merged_model": True,
}


class Outcome(NamedTuple):
    """What became of one architecture: `trained`, `refused` (with the error's code), `unbuildable` or `failed`."""

    model_type: str
    end: str
    code: str
    words: str


def run_case(model_type: str, folder: Path, **fields: Any) -> Outcome:
    """Build, train, save, and load again with PEFT alone. Never raises."""
    warnings.simplefilter("ignore")
    tokenizer = build_tokenizer()
    end = tokenizer.eos_token_id
    try:
        model = build_model(
            model_type, len(tokenizer) + 16, {"bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
        )
        tokenizer.save_pretrained(folder / "model")
        model.save_pretrained(folder / "model")
    except Exception as error:
        reason = REASONS.get(model_type)
        words = f"{reason} ({_shorten(error, 100)})" if reason else _shorten(error)
        return Outcome(model_type, "unbuildable", type(error).__name__, words)
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    try:
        return _train(model_type, folder, SFTConfig.from_dict(CONFIG | fields))
    except TuneyardError as error:
        return Outcome(model_type, "refused", error.code, _shorten(error))
    except Exception as error:
        if os.environ.get("SWEEP_TRACE"):
            traceback.print_exc()
        return Outcome(model_type, "failed", "internal_error", f"{type(error).__name__}: {_shorten(error)}")


def _train(model_type: str, folder: Path, config: SFTConfig) -> Outcome:
    path = folder / "model"
    rows = prepare(config, path, folder / "rows.jsonl", folder / "cache")
    planned = measure_shape(build_empty(path), config, path)
    session = TrainingSession(config, rows, path, folder / "out")
    trained = session.adaptation["trainable_parameters"]
    layout = session.trainer.layout
    before = session.evaluate()["eval_loss"]
    session.train()
    after = session.evaluate()["eval_loss"]
    saved = session.save(folder / "out" / "adapter")
    faults = []
    is_right = planned.trainable >= trained if planned.adaptation.is_guess else planned.trainable == trained
    if not is_right:
        faults.append(f"planned {planned.trainable} trained weights, trained {trained}")
    if not after < before:
        faults.append(f"loss {before:.4f} to {after:.4f}")
    still = [
        name
        for name, weight in session.trainer.model.named_parameters()
        if ("lora_B" in name and not weight.any()) and "expert" not in name
    ]
    if still:
        faults.append(f"{len(still)} adapters without effect, {still[0]} for one")
    held_out = list(rows.load_eval() or [])
    model_class = find_model_class(AutoConfig.from_pretrained(path), path)
    with quiet_transformers(), torch.no_grad():
        plain = PeftModel.from_pretrained(model_class.from_pretrained(path), str(saved)).eval()
        merged = model_class.from_pretrained(folder / "out" / "merged").eval()
        for name, model in (("the adapter", plain), ("the merged model", merged)):
            loss = measure_loss(model, held_out)
            if abs(loss - after) > 1e-3 * after:
                faults.append(f"{name} loads with loss {loss:.4f}, measured was {after:.4f}")
    words = f"layout {layout}; loss {before:.3f} to {after:.3f}; {len(session.warnings)} warnings"
    if faults:
        return Outcome(model_type, "failed", "broken_promise", "; ".join(faults) + f" ({words})")
    return Outcome(model_type, "trained", layout, words)


def _shorten(error: Exception, length: int = 300) -> str:
    return " ".join(str(error).split())[:length]
