"""`python -m tests.bench.memory`: the peak of memory that a plan foretells beside the one that training then takes.

Models of real layers with random weights (no download), on this machine's CPU. Plan and training are processes of their
own, one after the other; that of training has imported what a job's has. The last line is one JSON object: planned
over real bytes and the plan's seconds, by kind; 0.9 to 1.1 and at most 5 s are the aims.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console
from rich.table import Table

from sft.config import SFTConfig

if TYPE_CHECKING:
    from sft.data.tokenization import PreparedData

GB = 1e9
WORDS = "the of a river and house over small with blue mountain walks reads slowly every morning"
MODELS: dict[str, dict[str, Any]] = {
    "llama": {  # the layers of SmolLM2-135M
        **{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9},
        **{"num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True, "num_hidden_layers": 8},
    },
    "qwen2": {  # those of Qwen2.5-0.5B
        **{"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14},
        **{"num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True, "num_hidden_layers": 5},
    },
    "gpt2": {"model_type": "gpt2", "n_embd": 768, "n_layer": 8, "n_head": 12, "n_positions": 1024},
    "gemma3": {
        **{"model_type": "gemma3_text", "hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 4},
        **{"num_key_value_heads": 1, "head_dim": 256, "vocab_size": 65536, "num_hidden_layers": 8},
        **{"sliding_window": 256, "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 2},
    },
    "gemma2": {  # soft caps: rows are padded and logits are the model's own
        **{"model_type": "gemma2", "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 8},
        **{"num_key_value_heads": 4, "head_dim": 72, "vocab_size": 32768, "num_hidden_layers": 8},
    },
}
FP32, BF16 = {"mixed_precision": "none"}, {"mixed_precision": "bf16"}
FULL, DORA, RECOMPUTED = {"use_lora": False}, {"use_dora": True}, {"gradient_checkpointing": True}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA, fp32, batch 1": ("llama", {**FP32, "batch_size": 1}),
    "LoRA, fp32, batch 4": ("llama", {**FP32, "batch_size": 4}),
    "LoRA, bf16, batch 4": ("llama", {**BF16, "batch_size": 4}),
    "LoRA, fp32, batch 4, recomputed": ("llama", {**FP32, **RECOMPUTED, "batch_size": 4}),
    "DoRA, fp32, batch 2": ("llama", {**FP32, **DORA, "batch_size": 2}),
    "DoRA, bf16, batch 4, recomputed": ("llama", {**BF16, **DORA, **RECOMPUTED, "batch_size": 4}),
    "full, fp32, batch 2": ("llama", {**FP32, **FULL, "batch_size": 2}),
    "full, bf16, batch 4": ("llama", {**BF16, **FULL, "batch_size": 4}),
    "full, fp32, batch 4, recomputed": ("llama", {**FP32, **FULL, **RECOMPUTED, "batch_size": 4}),
    "LoRA, fp32, packed, batch 2": ("llama", {**FP32, "packing": True, "batch_size": 2}),
    "LoRA, bf16, 1200 tokens a batch": ("llama", {**BF16, "max_batch_tokens": 1200}),
    "Qwen2, LoRA, bf16, batch 4": ("qwen2", {**BF16, "batch_size": 4}),
    "Qwen2, LoRA, fp32, rank 64, batch 2": ("qwen2", {**FP32, "lora_r": 64, "batch_size": 2}),
    "GPT-2, LoRA, fp32, batch 4": ("gpt2", {**FP32, "batch_size": 4}),
    "GPT-2, full, fp32, batch 1": ("gpt2", {**FP32, **FULL, "batch_size": 1}),
    "Gemma 3, LoRA, fp32, batch 2": ("gemma3", {**FP32, "batch_size": 2}),
    "Gemma 2, LoRA, fp32, batch 2": ("gemma2", {**FP32, "batch_size": 2}),
}


def main() -> None:
    """Run each kind and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be given several times")
    options = arguments.parse_args()
    table = Table("", "planned GB", "real GB", "planned / real", "plan's seconds", "CPU seconds", "basis")
    ratios = {}
    for kind in options.kind or KINDS:
        found = compare(kind)
        ratios[kind] = [found["ratio"], found["seconds"], found["cpu_seconds"]]
        print(f"{kind}: {found}", file=sys.stderr, flush=True)
        peaks = (f"{found[name] / GB:.2f}" for name in ("planned_bytes", "real_bytes"))
        table.add_row(kind, *peaks, *map(str, ratios[kind]), found["basis"])
    Console(width=120).print(table)
    print(json.dumps(ratios))


def compare(kind: str) -> dict[str, Any]:
    """`planned_bytes`, `real_bytes`, their `ratio`, the plan's `seconds` and `basis`.

    Plan and training are forks of this process, which has imported what a job's process holds and does nothing else.
    """
    import sft.planning.plan
    import sft.training.session  # noqa: F401

    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for work, start in ((plan, "fork"), (train, "spawn")):
            with ProcessPoolExecutor(1, get_context(start)) as process:
                found |= process.submit(run, work, kind, Path(folder)).result()
    return found | {"ratio": round(found["planned_bytes"] / found["real_bytes"], 3)}


def run(work: Callable[..., dict[str, Any]], kind: str, folder: Path, layers: int | None = None) -> dict[str, Any]:
    """The figures of a plan, or of two steps of training that follow it.

    Args:
        layers: of the model, if not those of its kind.
    """
    from sft.data.tokenization import prepare
    from sft.models.loading import quiet_transformers

    model, fields = KINDS[kind]
    data = folder / "rows.jsonl"
    config = SFTConfig(
        base_model="model",
        dataset_name=str(data),
        dataset_format="alpaca",
        **{"max_seq_length": 1024, "validation_split": 0.0, "gradient_accumulation_steps": 1, "max_steps": 2},
        **{"save_steps": 10**6, "gradient_checkpointing": False, **fields},
    )
    with quiet_transformers():
        if not data.exists():
            rows = write_rows(varied="max_batch_tokens" in fields)
            data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            save_model(MODELS[model] | ({"num_hidden_layers": layers} if layers else {}), folder / "model")
        return work(config, prepare(config, folder / "model", data, folder / "rows"), folder)


def plan(config: SFTConfig, prepared: "PreparedData", folder: Path) -> dict[str, Any]:
    """The planned peak, and the seconds that the plan took in a process that has its libraries."""
    from sft.planning.plan import make_plan

    started_at, worked = time.perf_counter(), time.process_time()
    memory = make_plan(config, prepared, folder / "model", [], 10**12)["memory"]
    seconds, cpu = time.perf_counter() - started_at, time.process_time() - worked
    figures = {"planned_bytes": memory["peak_bytes"], "parts": memory["parts"], "basis": memory["basis"]}
    return figures | {"seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1)}


def train(config: SFTConfig, prepared: "PreparedData", folder: Path) -> dict[str, Any]:
    """The peak of this process, and what it held before the model was there and after."""
    import flows.finetune  # noqa: F401 - a job's process holds it
    from sft.training.session import TrainingSession

    base = psutil.Process().memory_info().rss
    session = TrainingSession(config, prepared, folder / "model", folder / "out")
    loaded = psutil.Process().memory_info().rss
    result = session.train()
    return {"base_bytes": base, "loaded_bytes": loaded, "real_bytes": result["peak_memory_bytes"]}


def save_model(settings: dict[str, Any], folder: Path) -> None:
    """Save a model of random weights in bf16 with the tests' tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.tiny_models import build_tokenizer

    fields = {"use_cache": False, "max_position_embeddings": 2048, **settings}
    tokenizer = build_tokenizer()
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields, **ids), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_rows(varied: bool) -> list[dict[str, str]]:
    """Rows of about 280 tokens each, or of 50 to 450."""
    words = WORDS.split()
    lengths = [12 + 12 * (number % 9) for number in range(24)] if varied else [64] * 24
    return [
        {
            "instruction": f"Say {number:03}.",
            "output": " ".join(words[(number + at) % len(words)] for at in range(count)),
        }
        for number, count in enumerate(lengths)
    ]


if __name__ == "__main__":
    main()
