"""`make bench`: the training step beside stock TRL on the same rows. The last line is one JSON object.

Each variant runs in a process of its own, one after the other, so that peaks of memory do not mix; what is compared
are ratios of one run. The rows are those of a file (`--data`, alpaca or chat), by default the demo's dataset.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from demo.model import MODEL_NAME, ensure_demo_model
from jobs.settings import PROJECT_ROOT, Settings
from sft.models.loading import choose_dtype, inspect_dtypes, measure_gemm
from tests.bench import first_step

GEMM_SIZE, GEMM_REPEATS = 1536, 30  # the fastest counts: what else the machine does only ever slows down
VARIANTS = {
    "ours": "Tuneyard, auto dtype",
    "ours_fp32": "Tuneyard, fp32",
    "ours_checkpointing": "Tuneyard, auto dtype, checkpointing",
    "trl": "TRL, defaults (bf16, checkpointing)",
    "trl_tuned": "TRL, fp32, no checkpointing",
}


def main() -> None:
    """Run every variant and print the table."""
    options = parse_options(str(__doc__))
    model = ensure_demo_model(Settings().model_root)
    if options.variant:
        print(json.dumps(run(options, model)))
        return
    figures = {name: run_alone(options, name) for name in VARIANTS}
    show(figures)
    print(json.dumps(summarize(figures) | {"first_step_seconds": first_step.measure()["step"]}))


def summarize(figures: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The last line's figures of the step itself."""
    speed = {name: values["tokens_per_second"] for name, values in figures.items()}
    return {
        "tokens_per_second": speed["ours"],
        "trl_tokens_per_second": speed["trl"],
        "trl_tuned_tokens_per_second": speed["trl_tuned"],
        "ratio": round(speed["ours"] / speed["trl"], 2),
        "ratio_tuned": round(speed["ours"] / speed["trl_tuned"], 2),
        "gemm_share": figures["ours"]["gemm_share"],
        "peak_gb": figures["ours"]["peak_gb"],
        "trl_peak_gb": figures["trl"]["peak_gb"],
    }


def parse_options(description: str) -> argparse.Namespace:
    """`data, rows, cutoff, variant`, from the command line."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--data", type=Path, help="file of rows; the demo's dataset if left out")
    arguments.add_argument("--rows", type=int, default=48)
    arguments.add_argument("--cutoff", type=int, default=1024)
    arguments.add_argument("--variant", choices=VARIANTS, help="run only this one and print its figures")
    options = arguments.parse_args()
    if options.data is None:
        from tasks.dataset import resolve

        options.data = resolve("handbook@v1.1", Settings()).train_file
    return options


def run_alone(options: argparse.Namespace, variant: str) -> dict[str, Any]:
    """A variant in a fresh process."""
    command = [sys.executable, "-m", "tests.bench.engine", "--variant", variant, "--data", str(options.data)]
    command += ["--rows", str(options.rows), "--cutoff", str(options.cutoff)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run(options: argparse.Namespace, model: Path) -> dict[str, Any]:
    """Train one epoch; tokens a second, peak memory in GB, mean loss."""
    from sft.config import SFTConfig
    from sft.data.tokenization import prepare
    from sft.training.session import TrainingSession, measure_peak_memory

    config = SFTConfig(
        base_model=MODEL_NAME,
        dataset_name=str(options.data),
        dataset_format="auto",
        template_name="chatml",
        max_samples=options.rows,
        max_seq_length=options.cutoff,
        validation_split=0.0,
        lora_r=16,
        lora_dropout=0.0,
        batch_size=4,
        gradient_accumulation_steps=1,
        num_epochs=1,
        save_steps=10**6,
        mixed_precision="none" if options.variant == "ours_fp32" else "auto",
        gradient_checkpointing=True if options.variant == "ours_checkpointing" else "auto",
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = prepare(config, model, options.data, Path(folder) / "rows")
        if options.variant.startswith("ours"):
            summary = TrainingSession(config, rows, model, Path(folder)).train()
            seconds, loss = summary["train_seconds"], summary["train_loss"]
        else:
            seconds, loss = run_trl(rows, model, Path(folder), tuned=options.variant == "trl_tuned")
    counts = rows.stats["train"]
    assert counts is not None
    floor = count_flops(model, counts) / measure_flops(options.variant)
    return {
        "tokens": counts["tokens"],
        "tokens_per_second": round(counts["tokens"] / seconds, 1),
        "seconds": round(seconds, 1),
        "gemm_share": round(floor / seconds, 2),
        "peak_gb": round(measure_peak_memory() / 1e9, 2),
        "loss": round(loss, 4),
    }


def count_flops(model: Path, counts: dict[str, int]) -> float:
    """What frozen weights cost at least: 4 FLOPs a weight a token, the head on supervised tokens only."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    head = causal.get_output_embeddings().weight.numel()
    body = sum(parameter.numel() for parameter in causal.model.layers.parameters())
    return 4.0 * (body * counts["tokens"] + head * counts["supervised_tokens"])


def measure_flops(variant: str) -> float:
    """FLOPs a second of the machine's own matrix product, in the dtype the variant computes in."""
    fp32_seconds, bf16_seconds = measure_gemm(GEMM_SIZE, GEMM_REPEATS)
    computes_in_fp32 = variant in ("ours_fp32", "trl_tuned") or (
        variant != "trl" and choose_dtype("auto", inspect_dtypes()) == torch.float32
    )
    return 2.0 * GEMM_SIZE**3 / (fp32_seconds if computes_in_fp32 else bf16_seconds)


def run_trl(rows: Any, model: Path, folder: Path, tuned: bool) -> tuple[float, float]:
    """The same rows and settings through trl.SFTTrainer as it comes; seconds and mean loss."""
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(model)
    options: dict[str, Any] = {"bf16": False, "gradient_checkpointing": False} if tuned else {}
    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        num_train_epochs=1,
        learning_rate=2e-4,
        max_length=None,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        dataset_kwargs={"skip_prepare_dataset": True},
        **options,
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=arguments,
        train_dataset=rows.load_train().select_columns(["input_ids", "labels"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=16, target_modules="all-linear"),
    )
    output = trainer.train()
    return output.metrics["train_runtime"], output.training_loss


def show(figures: dict[str, dict[str, Any]]) -> None:
    """Print the variants side by side."""
    table = Table("", "tokens/s", "seconds", "peak GB", "GEMM share", "loss")
    for name, values in figures.items():
        columns = ("tokens_per_second", "seconds", "peak_gb", "gemm_share", "loss")
        table.add_row(VARIANTS[name], *(f"{values[column]:g}" for column in columns))
    Console().print(table)


if __name__ == "__main__":
    main()
