"""What it costs a training that its checkpoints are sent to a store. The last line is one JSON object.

The same training alternates with and without a sender, in this process. The store is an S3 server in another one; it
has a core of its own, as a store on another machine would, and the training has the others. Saves are as far apart as
in the demo's job. Other load only adds to the seconds of a training, so the fastest with and without are compared.

`sending_cpu_percent` does not vary with other load: the CPU seconds of sending the checkpoints of one training, in
percent of what its cores could do during the fastest training without a sender.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Semaphore
from typing import Any
from uuid import uuid4

import psutil
import torch

from demo.model import MODEL_NAME, ensure_demo_model
from jobs.settings import PROJECT_ROOT, Settings
from jobs.shared_store import SharedStore, list_stored_checkpoints

SERVER = """
import time
from tests.s3_server import s3_server
with s3_server() as server:
    print(server.url, flush=True)
    time.sleep(3600)
"""


def main() -> None:
    """Measure and print."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--pairs", type=int, default=3)
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--save-steps", type=int, default=20)
    options = arguments.parse_args()
    *own, others = sorted(os.sched_getaffinity(0))
    with running_server(others) as url:
        if own:  # with a single core all share it
            os.sched_setaffinity(0, own)
        torch.set_num_threads(len(own) or 1)
        print(json.dumps(measure(options.pairs, options.steps, options.save_steps, url)))


@contextmanager
def running_server(core: int) -> Any:
    """An S3 server in a process of its own, on one core; its URL."""
    server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True)
    try:
        os.sched_setaffinity(server.pid, {core})
        assert server.stdout is not None
        yield server.stdout.readline().strip()
    finally:
        server.kill()
        server.wait()


def measure(pairs: int, steps: int, save_steps: int, url: str) -> dict[str, Any]:
    """Seconds of training without and with a sender, and the overhead of the fastest in percent.

    Which of a pair goes first alternates. A short training goes before, so that none pays for what the first one loads.
    """
    import pytest

    from tasks.dataset import resolve
    from tests.s3_server import BUCKET, ENVIRONMENT

    settings = Settings()
    model, data = ensure_demo_model(settings.model_root), resolve("handbook@v1.1", settings).train_file
    seconds: dict[bool, list[float]] = {False: [], True: []}
    sent = 0
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": url}).items():
            patch.setenv(name, value)
        store = SharedStore(f"s3://{BUCKET}/bench")
        train(model, data, Path(folder) / "first", 2, 1, store)
        for number in range(2 * pairs):
            is_sent = number % 4 in (1, 2)
            spent, count = train(model, data, Path(folder) / str(number), steps, save_steps, store if is_sent else None)
            seconds[is_sent].append(spent)
            sent += count
        costs = measure_sending(Path(folder) / "0", store)
    without, with_store = min(seconds[False]), min(seconds[True])
    possible = without * len(os.sched_getaffinity(0))
    return {
        "sending_cpu_seconds": [round(ours, 2) for ours, _ in costs],
        "server_cpu_seconds": [round(servers, 2) for _, servers in costs],
        "sending_cpu_percent": round(100 * sum(ours for ours, _ in costs) / possible, 2),
        "seconds_without": [round(value, 2) for value in seconds[False]],
        "seconds_with": [round(value, 2) for value in seconds[True]],
        "checkpoints_sent": sent,
        "upload_overhead_percent": round(100 * (with_store / without - 1), 2),
    }


def measure_sending(folder: Path, store: SharedStore) -> list[tuple[float, float]]:
    """CPU seconds of this process and of the server for each checkpoint of a training, sent one after the other."""
    from sft.checkpoints.folders import list_checkpoints
    from tasks.checkpoint_store import CheckpointSender

    (server,) = psutil.Process().children()
    stored = Semaphore(0)
    sender = CheckpointSender(store, uuid4(), nullcontext, 100, lambda step, sent, seconds: stored.release())
    costs = []
    directory = next(folder.rglob("checkpoint-*")).parent
    for checkpoint in reversed(list_checkpoints(directory)):
        before, servers = time.process_time(), sum(server.cpu_times()[:2])
        sender.add(checkpoint)
        if not stored.acquire(timeout=120):
            raise SystemExit(f"{checkpoint.name} was not sent")
        costs.append((time.process_time() - before, sum(server.cpu_times()[:2]) - servers))
    sender.close(60)
    return costs


def train(
    model: Path, data: Path, folder: Path, steps: int, save_steps: int, store: SharedStore | None
) -> tuple[float, int]:
    """Train; the seconds it took, and how many checkpoints were in the store just after."""
    from sft.config import SFTConfig
    from sft.data.tokenization import prepare
    from sft.training.session import TrainingSession
    from tasks.checkpoint_store import CheckpointSender

    config = SFTConfig(
        base_model=MODEL_NAME, dataset_name=str(data), dataset_format="auto", template_name="chatml", max_steps=steps,
        save_steps=save_steps, validation_split=0.0, lora_r=16, batch_size=4, gradient_accumulation_steps=1,
        mixed_precision="none", gradient_checkpointing=False,
    )  # fmt: skip
    rows = prepare(config, model, data, folder / "rows")
    job_id = uuid4()
    sender = store and CheckpointSender(store, job_id, nullcontext, config.save_total_limit)

    def on_event(name: str, values: dict[str, Any]) -> None:
        if name == "checkpoint" and sender:
            sender.add(Path(values["path"]))

    session = TrainingSession(config, rows, model, folder, on_event)
    began = time.monotonic()
    session.train()
    spent = time.monotonic() - began
    if not sender or not store:
        return spent, 0
    sender.close(60)
    return spent, len(list_stored_checkpoints(store, job_id))


if __name__ == "__main__":
    main()
