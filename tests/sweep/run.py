"""Every architecture that transformers can build, each trained, saved and loaded again: `make sweep`.

Types named on the command line are run alone. Each runs in a process of its own, in which a crash is an outcome too.
The last line is one JSON object.
"""

import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.sweep.case import Outcome, run_case
from tests.sweep.tiny import list_types

SECONDS = 240  # of CPU time for one architecture, after which it has failed
WALL_SECONDS = 10 * SECONDS  # on a machine that has other things to do


def main() -> int:
    """Run the types of the command line, or all; 1 when one failed."""
    outcomes = []
    for model_type in sys.argv[1:] or list_types():
        outcomes.append(outcome := _run_apart(model_type))
        reason = "cannot be built: " if outcome.end == "unbuildable" else ""
        print(f"{outcome.end:<11} {outcome.model_type:<28} {reason}{outcome.code}: {outcome.words}", flush=True)
    ends = Counter(outcome.end for outcome in outcomes)
    summary = {
        "architectures": len(outcomes),
        **{end: ends[end] for end in ("trained", "refused", "unbuildable", "failed")},
        "internal_error": sum(outcome.code == "internal_error" for outcome in outcomes),
        "refused_as": dict(Counter(outcome.code for outcome in outcomes if outcome.end == "refused")),
        "cannot_be_built": {
            outcome.model_type: f"{outcome.code}: {outcome.words}"
            for outcome in outcomes
            if outcome.end == "unbuildable"
        },
        "failures": [outcome.model_type for outcome in outcomes if outcome.end == "failed"],
    }
    print(json.dumps(summary))
    return 1 if ends["failed"] else 0


def _run_apart(model_type: str) -> Outcome:
    """In a process of its own: one that crashes or does not end has failed."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(_run(model_type)))
    process.start()
    sender.close()
    try:
        if receiver.poll(WALL_SECONDS):
            return receiver.recv()
        return Outcome(model_type, "failed", "timeout", f"{WALL_SECONDS} s")
    except EOFError:
        return Outcome(
            model_type, "failed", "crashed", f"its process ended without a word, or took {SECONDS} s of CPU time"
        )
    finally:
        process.kill()
        process.join()


def _run(model_type: str) -> Outcome:
    import logging

    import torch
    from transformers.utils import logging as transformers_logging

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))  # one that takes more is ended
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    transformers_logging.set_verbosity_error()
    folder = Path(tempfile.mkdtemp(prefix="sweep-"))
    try:
        return run_case(model_type, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    raise SystemExit(main())
