"""Starts the plain process of a serving check and gathers what it tells."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any, NamedTuple

from sft.confinement import explain_end, open_note
from sft.serving.samples import CheckedRow

SECRETS = ("TUNEYARD_", "PREFECT_API_", "MLFLOW_", "AWS_", "WANDB_", "HF_TOKEN")
WORDS_KEPT = 300


class Request(NamedTuple):
    """What to load and to compare.

    Attributes:
        adapter: the folder that will be registered.
        base: the base model's folder; None if the folder holds a whole model.
        auto_class: transformers' auto class of the base model.
        dtype: torch's name of the dtype in which the model was trained.
        device: torch's name of the device.
        compares_prompts: false if the template writes something else each time.
        memory_bytes: so much the process may allocate; None for no limit.
        seconds: time limit for all of it.
    """

    adapter: Path
    base: Path | None
    auto_class: str
    dtype: str
    device: str
    samples: list[CheckedRow]
    compares_prompts: bool
    memory_bytes: int | None
    seconds: float


class Replies(NamedTuple):
    """What the process told, in order, and why it ended without being done; None if it was done."""

    told: list[dict[str, Any]]
    problem: str | None


def ask(request: Request) -> Replies:
    """Run the check in a process of its own; it ends with this one, and when this call is interrupted.

    Raises OSError if no process or temporary file can be made.
    """
    note = open_note()
    lines: list[str] = []
    try:
        with tempfile.TemporaryFile() as errors:
            with contextlib.suppress(BrokenPipeError), _start(note, errors.fileno()) as process:
                reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()), daemon=True)
                reader.start()
                try:
                    with contextlib.suppress(BrokenPipeError):  # it has ended already; its exit code says why
                        _send(process, request, note)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(request.seconds)
                    is_late = process.poll() is None
                finally:
                    process.kill()
                    reader.join()
            told = [json.loads(line) for line in lines if line.endswith("\n")]
            return Replies(told, _explain(request, told, is_late, process.returncode, (note, errors)))
    finally:
        os.close(note)


def _start(note: int, errors: int) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SECRETS)}
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment |= {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, "-m", "sft.serving.plain"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        pass_fds=[note],
        text=True,
        encoding="utf-8",
    )


def _send(process: "subprocess.Popen[str]", request: Request, note: int) -> None:
    """Send the request and leave stdin open: its end tells the process that this one has ended."""
    assert process.stdin is not None  # noqa: S101 - it is a pipe
    sent = request._asdict() | {
        "adapter": str(request.adapter),
        "base": request.base and str(request.base),
        "samples": [sample._asdict() for sample in request.samples],
        "note": note,
    }
    process.stdin.write(json.dumps(sent) + "\n")
    process.stdin.flush()


def _explain(
    request: Request, told: list[dict[str, Any]], is_late: bool, code: int, left: tuple[int, IO[bytes]]
) -> str | None:
    """Explain why the process was not done; `left` are its note and its errors."""
    if told and (told[-1]["stage"] == "done" or "error" in told[-1]):
        return None
    if is_late:
        return f"it took more than {request.seconds:g} s (TUNEYARD_SERVING_CHECK_SECONDS)"
    note, errors = left
    if limit := explain_end(code, note):
        return str(limit)
    errors.seek(0)
    words = (errors.read().decode("utf-8", "replace").strip().splitlines() or [""])[-1]
    return f"its process ended with exit code {code}: {words[:WORDS_KEPT]}".rstrip(": ")
