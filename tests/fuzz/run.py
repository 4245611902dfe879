"""`make fuzz`: the OpenAPI document against a service of its own, by schemathesis. The last line is one JSON object.

A small model and a dataset are there, and a part of the files that are sent can be read.

Every operation in every way the document allows and forbids, alone and in sequences over the links between them. Jobs
only wait meanwhile: what they do is not the API's matter.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx
from transformers.utils import logging

from jobs.settings import PROJECT_ROOT
from tests.fuzz.rows import DATASET, MODEL, REAL, ROWS
from tests.live_service import pause_jobs, running_service
from tests.tiny_models import save_tiny_llama

CONFIG = Path(__file__).with_name("schemathesis.toml")
SEEDS = (1, 2)
MAX_EXAMPLES = 25  # of an operation, or sequences of operations, in each phase that makes any up
CASES = 5000
SERVER_ERRORS = {"ST101"}
REJECTIONS = {"ST201", "ST202"}  # the request and the schema are at odds, not the answer


def main() -> None:
    """Run every seed; exit with 1 unless nothing was found and enough was tried."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments.add_argument("--max-examples", type=int, default=MAX_EXAMPLES)
    arguments.add_argument("--cases", type=int, default=CASES, help="at least so many must be tried")
    arguments.add_argument("--paths", help="regular expression; only routes whose paths match it")
    options = arguments.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop from outside tears down like Ctrl-C
    more = ["--include-path-regex", options.paths] if options.paths else []
    os.environ[REAL] = "1"
    os.environ["TUNEYARD_WEBHOOK_ALLOW"] = "127.0.0.0/8"  # where the requests' webhooks lead, and nobody is
    with tempfile.TemporaryDirectory(prefix="tuneyard-fuzz-") as folder, running_service(Path(folder)) as (up, url):
        pause_jobs(up)
        prepare(url, up.model_root)
        reports = [fuzz(url, seed, options.max_examples, Path(folder), *more) for seed in options.seeds]
    counts = count(reports)
    print(json.dumps(counts))
    sys.exit(counts["failures"] > 0 or counts["cases"] < options.cases)


def prepare(url: str, model_root: Path) -> None:
    """A base model and a dataset, by the names that schemathesis.toml has."""
    logging.disable_progress_bar()
    save_tiny_llama(model_root / MODEL)
    files = {"file": (f"{DATASET}.jsonl", ROWS)}
    httpx.post(f"{url}/datasets", files=files, timeout=120).raise_for_status()


def fuzz(url: str, seed: int, max_examples: int, folder: Path, *more: str) -> dict[str, Any]:
    """One run against the API at `url`: schemathesis' report, in which what it printed stands as `text`."""
    report = folder / f"schemathesis-{seed}.json"
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{url}/openapi.json"]
    command += ["--seed", str(seed), "--max-examples", str(max_examples), "--no-color", *more]
    command += ["--suppress-health-check", "filter_too_much"]  # names of models have a slash, which no segment has
    command += ["--report", "json", "--report-json-path", str(report)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=os.environ, text=True, capture_output=True, check=False)
    print(done.stdout)
    if not report.exists():
        raise RuntimeError(f"schemathesis made no report:\n{done.stdout}\n{done.stderr}")
    return {**json.loads(report.read_text()), "text": done.stdout}


def count(reports: list[dict[str, Any]]) -> dict[str, int]:
    """The sum of what the runs found. `failures` counts what schemathesis itself could not make sense of, too."""
    found = [failure for report in reports for failure in report["failures"]]
    is_server_error = [failure["code"] in SERVER_ERRORS for failure in found]
    errors = sum(error["count"] for report in reports for error in report["errors"])
    return {
        "cases": sum(report["test_cases"]["generated"] for report in reports),
        "operations": min(report["operations"]["tested"] for report in reports),
        "server_errors": sum(f["count"] for f, is_it in zip(found, is_server_error, strict=True) if is_it),
        "schema_violations": sum(f["count"] for f in found if f["code"] not in SERVER_ERRORS | REJECTIONS),
        "failures": sum(f["count"] for f in found)
        + errors
        + sum(report["exit_code"] not in (0, 1) for report in reports),
    }


if __name__ == "__main__":
    main()
