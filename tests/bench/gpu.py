"""`make gpu-check`: every method on this machine's GPU beside stock TRL. The last line is one JSON object.

Models of real shapes get random weights here; nothing is downloaded, and no service is needed. Each case runs in a
process of its own. Exits with 1 if a case fails or its losses are not those of stock TRL. `--tiny` runs on a CPU too.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from tests.bench import gpu_cases, gpu_runs, gpu_split
from tests.bench.gpu_cases import Case, list_cases, list_rows

STEPS, WARM = 10, 3
TINY_STEPS, TINY_WARM = 3, 1
# Relative difference of a loss that rounding explains: fp32; bf16.
TOLERANCES = {"cpu": 1e-4, "cuda": 1e-2}
COLUMNS = ("", "tokens/s", "MFU", "of GEMM", "peak GB", "plan GB", "loss", "layout")


def main() -> None:
    """Run the cases, print the table and the line."""
    options = parse_options(str(__doc__))
    if not options.tiny and not torch.cuda.is_available():
        raise SystemExit("gpu-check needs a CUDA device and there is none; try it with --tiny")
    if not torch.cuda.is_available():
        gpu_runs.preload()
    started, figures = time.monotonic(), {}
    with tempfile.TemporaryDirectory() as folder:
        device = run_alone(gpu_runs.describe_device)
        for case in list_cases(options.tiny):
            name = f"{case.model}: {case.name}"
            if time.monotonic() - started > options.seconds:
                figures[name] = {"skipped": f"after {options.seconds} s"}
            else:
                figures[name] = run_alone(run, case, options.tiny, Path(folder))
            report(name, figures[name])
    show(figures, device)
    problems = find_problems(figures, list_cases(options.tiny))
    for problem in problems:
        print(problem)
    print(json.dumps(summarize(figures, device, problems, time.monotonic() - started)))
    sys.exit(bool(problems))


def parse_options(description: str) -> argparse.Namespace:
    """`tiny, seconds`, from the command line."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--tiny", action="store_true", help="a tiny model, on a CPU too")
    arguments.add_argument("--seconds", type=int, default=480, help="begin no case after this many")
    return arguments.parse_args()


def run_alone(function: Any, *arguments: Any) -> dict[str, Any]:
    """The function's result from a process of its own, or its `error`: peaks of memory do not mix."""
    # A forked process has the libraries at once, but can't use a GPU that its parent has touched.
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        found: dict[str, Any] = receiver.recv()
    except EOFError:
        found = {"error": "the process ended without a word"}
    process.join()
    return found


def _answer(sender: Connection, function: Any, arguments: tuple[Any, ...]) -> None:
    try:
        sender.send(function(*arguments))
    except Exception as error:
        sender.send({"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"})


def run(case: Case, is_tiny: bool, folder: Path) -> dict[str, Any]:
    """Run a case; its model and rows are made by the first that needs them."""
    if is_tiny:
        torch.set_num_threads(1)
    rows = list_rows(is_tiny)[case.rows]
    steps, warm = (TINY_STEPS, TINY_WARM) if is_tiny else (STEPS, WARM)
    model, file = folder / case.model, folder / f"{case.rows}.json"
    if not model.exists():
        gpu_cases.save_model(case.model, model)
    if not file.exists():
        # Packing needs more rows for as many steps.
        gpu_cases.write_rows(rows, 12 * rows.batch * steps, file)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        runs = gpu_split if case.fields.get("num_devices") else gpu_runs
        result: dict[str, Any] = runs.run_case(case, rows, model, file, Path(own), steps, warm)
    return result


def find_problems(figures: dict[str, dict[str, Any]], cases: list[Case]) -> list[str]:
    """Sentences on cases that failed, and on losses that are not stock TRL's."""
    problems = [f"{name} failed: {values['error']}" for name, values in figures.items() if "error" in values]
    tolerance = TOLERANCES["cuda" if torch.cuda.is_available() else "cpu"]
    for case in cases:
        mine, stock = (figures.get(f"{case.model}: {name}", {}) for name in (case.name, case.like))
        # Padded rows are grouped by length: other batches than TRL's.
        if "losses" not in mine or "losses" not in stock or mine["layout"] != "documents":
            continue
        for step, (found, wanted) in enumerate(zip(mine["losses"], stock["losses"], strict=True), start=1):
            if not abs(found - wanted) <= tolerance * abs(wanted):
                problems.append(f"{case.model}: {case.name} has the loss {found} at step {step}, stock TRL {wanted}")
                break
    return problems


def summarize(
    figures: dict[str, dict[str, Any]], device: dict[str, Any], problems: list[str], seconds: float
) -> dict[str, Any]:
    """The last line."""
    ratios = {}
    for name, values in figures.items():
        stock = figures.get(f"{values.get('model')}: trl lora", {})
        if name.endswith(": lora") and "tokens_per_second" in values and "tokens_per_second" in stock:
            ratios[values["model"]] = round(values["tokens_per_second"] / stock["tokens_per_second"], 2)
    return {
        **device,
        "cases": {name: add_shares(values, device) for name, values in figures.items()},
        "ratios": ratios,
        "problems": problems,
        "seconds": round(seconds, 1),
    }


def add_shares(values: dict[str, Any], device: dict[str, Any]) -> dict[str, Any]:
    """With `mfu` (of the data sheet's FLOPs; None if unknown) and `gemm_share` (of a matrix product's here)."""
    if "flops_per_second" not in values:
        return values
    peak = device["peak_flops"]
    return values | {
        "mfu": None if peak is None else round(values["flops_per_second"] / peak, 3),
        "gemm_share": round(values["flops_per_second"] / device["gemm_flops"], 3),
    }


def report(name: str, values: dict[str, Any]) -> None:
    """A line as soon as a case is done."""
    told = values.get("error") or values.get("skipped") or f"{values['tokens_per_second']:g} tokens/s"
    print(f"{name}: {told}", file=sys.stderr, flush=True)


def show(figures: dict[str, dict[str, Any]], device: dict[str, Any]) -> None:
    """Print the table."""
    lines = [COLUMNS]
    for name, plain in figures.items():
        values = add_shares(plain, device)
        if "losses" not in values:
            lines.append((name, "failed" if "error" in values else "skipped", "", "", "", "", "", ""))
            continue
        planned = values.get("planned_bytes")
        lines.append(
            (
                name,
                f"{values['tokens_per_second']:.0f}",
                "" if values["mfu"] is None else f"{values['mfu']:.1%}",
                f"{values['gemm_share']:.1%}",
                f"{values['peak_bytes'] / 1e9:.2f}",
                "" if planned is None else f"{planned / 1e9:.2f}",
                f"{values['losses'][-1]:.4f}",
                f"{values['layout']} ({values['attention']})",
            )
        )
    widths = [max(len(line[at]) for line in lines) for at in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
