"""`python -m tests.bench.estimates`: the time a plan foretells beside what training then takes, by kind of work.

Plan and training run one after the other, each in a process of its own; on a machine with other work they tell
nothing. The last line is one JSON object: real seconds over planned ones, by kind; 0.7 to 1.3 is the aim.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.model import MODEL_NAME, ensure_demo_model
from jobs.settings import PROJECT_ROOT, Settings
from sft.config import SFTConfig

KINDS: dict[str, dict[str, Any]] = {
    "default": {},
    "batch 8": {"batch_size": 8},
    "rank 64, no dropout": {"lora_r": 64, "lora_dropout": 0.0},
    "fp32, batch 2": {"mixed_precision": "none", "batch_size": 2},
    "DoRA": {"use_dora": True},
    "DoRA, batch 8": {"use_dora": True, "batch_size": 8},
}


def main() -> None:
    """Run each kind and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path, help="file of rows; the demo's dataset if left out")
    arguments.add_argument("--rows", type=int, default=64)
    arguments.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be given several times")
    arguments.add_argument("--what", choices=("plan", "train"), help="do one half of one kind and print its seconds")
    options = arguments.parse_args()
    if options.data is None:
        from tasks.dataset import resolve

        options.data = resolve("handbook@v1.1", Settings()).train_file
    kinds = options.kind or list(KINDS)
    if options.what:
        print(run(options, kinds[0]))
        return
    table = Table("", "planned s", "real s", "real / planned")
    ratios = {}
    for kind in kinds:
        planned, real = (run_alone(options, kind, what) for what in ("plan", "train"))
        ratios[kind] = round(real / planned, 2)
        table.add_row(kind, f"{planned:.1f}", f"{real:.1f}", f"{ratios[kind]:.2f}")
    Console().print(table)
    print(json.dumps(ratios))


def run_alone(options: argparse.Namespace, kind: str, what: str) -> float:
    """Seconds, from a fresh process."""
    command = [sys.executable, "-m", "tests.bench.estimates", "--what", what, "--kind", kind]
    command += ["--data", str(options.data), "--rows", str(options.rows)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} of {kind} failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.splitlines()[-1])


def run(options: argparse.Namespace, kind: str) -> float:
    """Seconds of training: planned, or those it takes."""
    from sft.data.tokenization import prepare
    from sft.planning.plan import make_plan
    from sft.training.session import TrainingSession

    model = ensure_demo_model(Settings().model_root)
    fields = {"gradient_accumulation_steps": 1, "num_epochs": 1, "validation_split": 0.0, **KINDS[kind]}
    config = SFTConfig(
        base_model=MODEL_NAME,
        dataset_name=str(options.data),
        dataset_format="auto",
        template_name="chatml",
        max_samples=options.rows,
        max_seq_length=1024,
        save_steps=10**6,
        **fields,
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = prepare(config, model, options.data, Path(folder) / "rows")
        if options.what == "plan":
            return float(make_plan(config, rows, model, [], 10**12)["time"]["train_seconds"])
        return float(TrainingSession(config, rows, model, Path(folder)).train()["train_seconds"])


if __name__ == "__main__":
    main()
