"""`make bench-peers`: LLaMA-Factory on the rows and settings of `make bench`, from a virtual environment of its own.

LLaMA-Factory recomputes activations, so ours is run as it comes and with checkpointing. The last line is one JSON
object. Tokens are counted as by Tuneyard's tokenization of the same rows.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml

from demo.model import ensure_demo_model
from jobs.settings import PROJECT_ROOT, Settings
from sft.data.data_files import read_rows
from sft.data.formats import Conversation, read_row
from sft.data.splits import split_rows
from tests.bench import engine

PEERS = PROJECT_ROOT / ".venv-peers"
SEED = 42  # of SFTConfig


def main() -> None:
    """Run ours, then LLaMA-Factory, and print both."""
    options = engine.parse_options(__doc__)
    model = ensure_demo_model(Settings().model_root)
    ours, ours_checkpointing = (engine.run_alone(options, name) for name in ("ours", "ours_checkpointing"))
    tokens = ours["tokens"]
    seconds, peak_bytes = run_llama_factory(options, model)
    summary = {
        "tokens_per_second": ours["tokens_per_second"],
        "llama_factory_tokens_per_second": round(tokens / seconds, 1),
        "ratio": round(ours["tokens_per_second"] * seconds / tokens, 2),
        "ratio_checkpointing": round(ours_checkpointing["tokens_per_second"] * seconds / tokens, 2),
        "peak_gb": ours["peak_gb"],
        "peak_gb_checkpointing": ours_checkpointing["peak_gb"],
        "llama_factory_peak_gb": round(peak_bytes / 1e9, 2),
    }
    print(json.dumps(summary))


def run_llama_factory(options: argparse.Namespace, model: Path) -> tuple[float, int]:
    """One epoch; the seconds its Trainer reports and the most memory its process held, in bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_rows(options, folder)
        (folder / "train.yaml").write_text(yaml.safe_dump(build_arguments(options, model, folder)), encoding="utf-8")
        command = [str(PEERS / "bin" / "llamafactory-cli"), "train", str(folder / "train.yaml")]
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "DISABLE_VERSION_CHECK": "1", "CUDA_VISIBLE_DEVICES": ""}
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
            peak = watch_peak(process)
        if process.returncode:
            raise SystemExit(f"LLaMA-Factory failed:\n{(folder / 'log').read_text()[-2000:]}")
        report: dict[str, Any] = json.loads((folder / "out" / "train_results.json").read_text())
        return float(report["train_runtime"]), peak


def write_rows(options: argparse.Namespace, folder: Path) -> None:
    """The rows the engine's bench trains on, as a dataset that LLaMA-Factory knows."""
    rows, _ = split_rows(read_rows(options.data), 0.0, options.rows, seed=SEED)
    conversations = [read_row(row, "auto") for _, row in rows]
    messages = [{"messages": row.messages} for row in conversations if isinstance(row, Conversation)]
    (folder / "rows.json").write_text(json.dumps(messages), encoding="utf-8")
    tags = {"role_tag": "role", "content_tag": "content"}
    tags |= {"user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"}
    described = {"file_name": "rows.json", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": described}), encoding="utf-8")


def build_arguments(options: argparse.Namespace, model: Path, folder: Path) -> dict[str, Any]:
    """LLaMA-Factory's words for the settings of the engine's bench."""
    return {
        "model_name_or_path": str(model),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": 16,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_target": "all",
        "dataset": "rows",
        "dataset_dir": str(folder),
        "template": "chatml",
        "cutoff_len": options.cutoff,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "learning_rate": 2.0e-4,
        "num_train_epochs": 1,
        "bf16": True,
        "use_cpu": not torch.cuda.is_available(),
        "save_strategy": "no",
        "report_to": "none",
        "output_dir": str(folder / "out"),
    }


def watch_peak(process: "subprocess.Popen[bytes]") -> int:
    """Wait for a process; the most memory that it and its children held at once, in bytes."""
    peak = 0
    while process.poll() is None:
        try:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            peak = max(peak, sum(member.memory_info().rss for member in family))
        except psutil.Error:
            pass
        time.sleep(0.2)
    return peak


if __name__ == "__main__":
    main()
