"""`make bench`: preparing rows beside the tokenizer alone and TRL's preparation of the same rows, in one run.

The rows are alpaca rows of about 340 tokens, drawn from the demo's dataset with a seed. Each variant runs in a process
of its own with as many processes as cores. Its libraries are imported before, as a job's are; seconds count from the
file on the disk (for the tokenizer alone, from rendered texts in memory). The last line is one JSON object.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from demo.model import MODEL_NAME, ensure_demo_model
from jobs.settings import PROJECT_ROOT, Settings
from sft.config import SFTConfig
from sft.data.data_files import read_rows
from sft.data.encoding import BlockEncoder
from sft.data.forked_workers import count_cores, map_ordered
from sft.data.row_blocks import Block, read_blocks
from sft.data.tokenization import prepare

WORDS = 240  # of an answer, on average
SLICE = 512  # texts that the tokenizer gets at once
POLL_SECONDS = 0.1
LIBRARIES = {"ours": ("transformers",), "tokenizer": ("transformers",), "trl": ("datasets", "trl.trainer.sft_trainer")}
VARIANTS = {"ours": "Tuneyard", "tokenizer": "the tokenizer alone", "trl": "TRL's preparation"}


def main() -> None:
    """Run every variant on the same rows and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=20_000)
    arguments.add_argument("--variant", choices=VARIANTS, help="run only this one and print its figures")
    arguments.add_argument("--data", type=Path, help="with --variant: the file of rows")
    options = arguments.parse_args()
    model = ensure_demo_model(Settings().model_root)
    if options.variant:
        print(json.dumps(run(options.variant, options.data, model)))
        return
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        write_rows(data, options.rows, Settings())
        figures = {name: run_alone(name, data) for name in VARIANTS}
    table = Table("rows", "seconds", "CPU seconds", "rows/s", "peak GB")
    for name, values in figures.items():
        columns = ("seconds", "cpu_seconds", "rows_per_second", "peak_gb")
        table.add_row(VARIANTS[name], *(f"{values[column]:g}" for column in columns))
    Console().print(table)
    print(json.dumps(summarize(figures) | {"rows": options.rows, "processes": count_cores()}))


def summarize(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The last line's figures: seconds as ratios of those of the same run."""
    seconds = {name: values["seconds"] for name, values in figures.items()}
    return {
        "rows_per_second": figures["ours"]["rows_per_second"],
        "rows_ratio_tokenizer": round(seconds["ours"] / seconds["tokenizer"], 2),
        "rows_cpu_ratio_tokenizer": round(figures["ours"]["cpu_seconds"] / figures["tokenizer"]["cpu_seconds"], 2),
        "rows_ratio_trl": round(seconds["trl"] / seconds["ours"], 2),
        "rows_peak_gb": figures["ours"]["peak_gb"],
        "rows_trl_peak_gb": figures["trl"]["peak_gb"],
    }


def write_rows(path: Path, count: int, settings: Settings) -> None:
    """Write rows whose words are those of the demo's dataset."""
    from tasks.dataset import resolve

    source = read_rows(resolve("handbook@v1.1", settings).train_file)
    words = " ".join(row["output"] for _, row in source if isinstance(row, dict)).split()
    draw = Random(0)  # noqa: S311
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            start, length = draw.randrange(len(words) - 2 * WORDS), draw.randrange(WORDS // 3, WORDS * 5 // 3)
            row = {"instruction": f"{number}: what is said of this?", "output": " ".join(words[start : start + length])}
            file.write(f"{json.dumps(row)}\n")


def run_alone(variant: str, data: Path) -> dict[str, Any]:
    """A variant in a fresh process."""
    command = [sys.executable, "-m", "tests.bench.rows", "--variant", variant, "--data", str(data)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run(variant: str, data: Path, model: Path) -> dict[str, Any]:
    """Prepare the rows; seconds, rows a second, and the memory of all processes at their peak in GB."""
    config = SFTConfig(base_model=MODEL_NAME, dataset_name=str(data), dataset_format="auto", template_name="chatml")
    for name in LIBRARIES[variant]:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        works = {"ours": lambda: run_ours(config, model, data, Path(folder)), "trl": lambda: run_trl(model, data)}
        work = works.get(variant) or render(config, model, data)
        peak = PeakMemory()
        started_at, cpu_before = time.monotonic(), sum(os.times()[:4])
        rows = work()
        seconds = time.monotonic() - started_at
        return {
            "seconds": round(seconds, 2),
            "cpu_seconds": round(sum(os.times()[:4]) - cpu_before, 2),  # of ended children too; other load counts less
            "rows_per_second": round(rows / seconds),
            "peak_gb": round(peak.stop() / 1e9, 2),
        }


def run_ours(config: SFTConfig, model: Path, data: Path, folder: Path) -> int:
    """`prepare`, as a job does."""
    prepared = prepare(config, model, data, folder)
    return sum(counts["rows"] for counts in prepared.stats.values() if counts)


def render(config: SFTConfig, model: Path, data: Path) -> Callable[[], int]:
    """Render the rows beforehand; returns what tokenizes them in as many processes as ours."""
    from sft.models.loading import load_tokenizer

    tokenizer = load_tokenizer(model)
    encoder = BlockEncoder(config, tokenizer)

    def render_block(block: Block) -> list[str]:
        return [encoder._render_row(number, row).text for number, row in block.read()]  # what ours gives the tokenizer

    texts = [text for part in map_ordered(render_block, read_blocks(data), count_cores()) for text in part]
    slices = [texts[start : start + SLICE] for start in range(0, len(texts), SLICE)]

    def tokenize(part: list[str]) -> int:
        return len(tokenizer.backend_tokenizer.encode_batch(part, add_special_tokens=False))

    return lambda: sum(map_ordered(tokenize, slices, count_cores()))


def run_trl(model: Path, data: Path) -> int:
    """TRL's own preparation of prompts and completions, by its trainer with a model of one layer."""
    import datasets
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig as Arguments
    from trl import SFTTrainer

    datasets.disable_caching()
    with tempfile.TemporaryDirectory() as folder:
        rows = datasets.Dataset.from_json(str(data), cache_dir=folder)
        rows = rows.map(to_messages, remove_columns=rows.column_names, num_proc=count_cores())
        small = AutoConfig.from_pretrained(model, num_hidden_layers=1)
        arguments = Arguments(
            output_dir=folder,
            max_length=2048,
            dataset_num_proc=count_cores(),
            report_to="none",
            bf16=False,
            use_cpu=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(model)
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_config(small), args=arguments, train_dataset=rows, processing_class=tokenizer
        )
        return len(trainer.train_dataset)


def to_messages(row: dict[str, str]) -> dict[str, Any]:
    """A row in the form that TRL reads."""
    prompt = [{"role": "user", "content": row["instruction"]}]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": row["output"]}]}


class PeakMemory:
    """Watches the memory of this process and its children, shared pages counted once (PSS)."""

    def __init__(self) -> None:
        self._peak = 0
        self._has_ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def stop(self) -> int:
        """The most that they held at once, in bytes."""
        self._has_ended.set()
        self._watcher.join()
        return self._peak

    def _watch(self) -> None:
        this = psutil.Process(os.getpid())
        while not self._has_ended.wait(POLL_SECONDS):
            held = 0
            for process in [this, *this.children(recursive=True)]:
                try:
                    held += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self._peak = max(self._peak, held)


if __name__ == "__main__":
    main()
