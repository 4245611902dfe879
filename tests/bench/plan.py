"""`python -m tests.bench.plan`: the seconds a plan takes, cold and warm. The last line is one JSON object.

The rows are those of a file (`--data`, any format), by default the demo's dataset; the model is the demo's.
"""

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.model import MODEL_NAME, ensure_demo_model
from jobs.service.planner import Planner
from jobs.settings import Settings
from sft.config import SFTConfig


def main() -> None:
    """Plan with a planner that has to start, then with one that is ready, each with and without tokenized rows."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", type=Path, help="file of rows; the demo's dataset if left out")
    arguments.add_argument("--batch-size", type=int, default=4)
    options = arguments.parse_args()
    settings = Settings()
    model = ensure_demo_model(settings.model_root)
    with tempfile.TemporaryDirectory() as folder:
        home = Settings(home=Path(folder), model_root=model.parent.parent)
        dataset = "handbook@v1.1"
        if options.data:
            home.data_root.mkdir()
            dataset = shutil.copy(options.data, home.data_root).removeprefix(f"{home.data_root}/")
        config = SFTConfig(
            base_model=MODEL_NAME,
            dataset_name=str(dataset),
            dataset_format="auto",
            template_name="chatml",
            batch_size=options.batch_size,
        )
        figures, plan = measure(config, home)
    table = Table("", "seconds")
    for name, seconds in figures.items():
        table.add_row(name.replace("_", " "), f"{seconds:.2f}")
    Console().print(table)
    facts = {"rows": plan["dataset"]["rows"], "basis": plan["time"]["basis"]}
    print(json.dumps({**facts, **{name: round(seconds, 2) for name, seconds in figures.items()}}))


def measure(config: SFTConfig, settings: Settings) -> tuple[dict[str, float], dict[str, Any]]:
    """Seconds by situation, and the last plan."""
    planner = Planner()
    figures = {}
    try:
        for name, forgets in (("cold", True), ("ready", True), ("ready_and_tokenized", False)):
            if forgets:
                shutil.rmtree(settings.home / "tokenized", ignore_errors=True)
            start = time.perf_counter()
            plan = planner.plan(config, settings)
            figures[name] = time.perf_counter() - start
    finally:
        planner.close()
    return figures, plan


if __name__ == "__main__":
    main()
