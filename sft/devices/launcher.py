"""Trains on several devices with one DDP process each, started by torch.distributed.run."""

import contextlib
import logging
import os
import secrets
import subprocess
import sys
import time
import weakref
from contextlib import nullcontext
from multiprocessing.connection import Connection, Listener, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch

from sft.adapting.shardable import check_sharding
from sft.callbacks import OnEvent
from sft.config import SFTConfig
from sft.data.mixing import AnyRows
from sft.errors import StackError
from sft.files.publication import Publishing
from sft.models.hardware import check_hardware, inspect_hardware
from sft.models.loading import name_precision
from sft.models.model_class import build_empty
from sft.planning.disk_space import check_disk_space
from sft.training.model_card import Provenance
from sft.training.precision import settle_dtype
from sft.training.session import TrainingSession

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

ADDRESS_VARIABLE = "SFT_LAUNCHER_ADDRESS"  # port and secret, for the DDP workers
START_SECONDS = 600
POLL_SECONDS = 0.5
STOP_SECONDS = 10  # for the current batch and its checkpoint when a run is stopped


def open_session(
    config: SFTConfig,
    prepared: AnyRows,
    model_path: Path,
    output_dir: Path,
    on_event: OnEvent | None = None,
    checkpoint_dir: Path | None = None,
    publishing: Publishing = nullcontext,
) -> "TrainingSession | DistributedSession":
    """Open a session on `num_devices` devices; arguments and errors are those of `TrainingSession`.

    Raises DiskFull, before anything is loaded, if the job's files would not fit.
    """
    check_disk_space(config, prepared, model_path, output_dir, checkpoint_dir or output_dir / "checkpoints")
    kind = TrainingSession if config.num_devices == 1 else DistributedSession
    return kind(config, prepared, model_path, output_dir, on_event, checkpoint_dir, publishing)


class DistributedSession:
    """A `TrainingSession` with one process for each of `num_devices` devices.

    Each process has its own `TrainingSession` and every `num_devices`-th batch; gradients are averaged by
    DistributedDataParallel, weighted by tokens. With `shard_model` the base model's layers are split over the processes
    (`sft.models.sharding`), each of which computes its own batches as before.

    Events of rank 0 reach `on_event` here, on the calling thread. The processes end with this object, with its process,
    or when one of them fails.

    Raises:
        InvalidConfig: fewer devices than asked for, or as in `TrainingSession`.
        ModelNotFound: as in `TrainingSession`.
    """

    def __init__(
        self,
        config: SFTConfig,
        prepared: AnyRows,
        model_path: Path,
        output_dir: Path,
        on_event: OnEvent | None = None,
        checkpoint_dir: Path | None = None,
        publishing: Publishing = nullcontext,
    ) -> None:
        check_hardware(config, inspect_hardware())
        check_sharding(lambda: build_empty(model_path), config)
        self.on_event: OnEvent = on_event or (lambda name, values: None)
        self.config = config
        self.model_path = model_path
        if config.mixed_precision == "auto":  # measured once, as each process might choose differently
            checkpoints = checkpoint_dir or output_dir / "checkpoints"
            precision = name_precision(settle_dtype(config, checkpoints))
            config = config.model_copy(update={"mixed_precision": precision})
        secret = secrets.token_bytes(32)
        with Listener(("127.0.0.1", 0), backlog=config.num_devices, authkey=secret) as listener:
            self._launcher = _launch(config.num_devices, f"{listener.address[1]}:{secret.hex()}")
            self._workers: list[Connection] = []
            self._end = weakref.finalize(self, _end_workers, self._launcher, self._workers)
            try:
                self._accept(listener, config.num_devices)
                self.adaptation, self.warnings = self._call(
                    "open", config, prepared, model_path, output_dir, checkpoint_dir, publishing
                )
            except BaseException:
                self.close()
                raise

    def evaluate(self) -> dict[str, Any]:
        """`TrainingSession.evaluate` over all held-out rows."""
        metrics: dict[str, Any] = self._call("evaluate")
        return metrics

    @property
    def keeps_start(self) -> bool:
        """False: evaluate the start before training."""
        return False

    def evaluate_start(self) -> dict[str, Any]:
        """`TrainingSession.evaluate_start`; call it before training."""
        metrics: dict[str, Any] = self._call("evaluate_start")
        return metrics

    def measure_rows(self, rows: "Dataset") -> dict[str, Any]:
        """`TrainingSession.measure_rows`, over all processes."""
        measured: dict[str, Any] = self._call("measure_rows", rows)
        return measured

    def free_model(self) -> None:
        """`TrainingSession.free_model`, in each process."""
        self._call("free_model")

    def train(self) -> dict[str, Any]:
        """`TrainingSession.train`; tokens and losses are those of all processes.

        When a signal stops it, the processes finish the current batch and save a checkpoint of the last complete
        step, within STOP_SECONDS; if that takes longer (during an evaluation, say), they are killed without one.
        """
        result: dict[str, Any] = self._call("train")
        self.warnings = self._call("list_warnings")
        return result

    def save(self, adapter_dir: Path, provenance: Provenance | None = None) -> Path:
        """`TrainingSession.save`, in rank 0."""
        self._call("save", adapter_dir, provenance)
        return adapter_dir

    def save_adapter(self, adapter_dir: Path, provenance: Provenance | None = None) -> Path:
        """`TrainingSession.save_adapter`, in rank 0."""
        self._call("save_adapter", adapter_dir, provenance)
        return adapter_dir

    def save_merged(self, adapter_dir: Path, provenance: Provenance | None = None) -> Path:
        """`TrainingSession.save_merged`, in rank 0."""
        merged: Path = self._call("save_merged", adapter_dir, provenance)
        return merged

    def close(self) -> None:
        """End the processes. Safe to call again."""
        self._end()

    def _accept(self, listener: Listener, count: int) -> None:
        """Wait until each process has connected; its first message is its rank."""
        deadline = time.monotonic() + START_SECONDS
        found: dict[int, Connection] = {}
        while len(found) < count:
            if wait([listener._listener._socket], POLL_SECONDS):  # type: ignore[attr-defined]  # it has no timeout
                worker = listener.accept()
                found[worker.recv()] = worker
            elif self._launcher.poll() is not None or time.monotonic() > deadline:
                raise StackError(f"the {count} processes of num_devices did not start; their output says why")
        self._workers.extend(found[rank] for rank in range(count))

    def _call(self, method: str, *arguments: Any) -> Any:
        """Run a method in every process, forwarding events of rank 0; returns rank 0's result."""
        try:
            for worker in self._workers:
                worker.send((method, arguments))
            pending, result = list(self._workers), None
            while pending:
                for ready in wait(pending, POLL_SECONDS):
                    kind, value = self._receive(ready)
                    if kind == "event":
                        self.on_event(*value)
                        continue
                    if kind == "error":
                        raise value
                    result = value if ready is self._workers[0] else result
                    pending = [worker for worker in pending if worker is not ready]
            return result
        except Exception:
            self.close()
            raise
        except BaseException:  # a signal handler raised
            try:
                if method == "train":
                    self._stop()
            finally:
                self.close()
            raise

    def _stop(self) -> None:
        """Stop the processes and wait until all have stopped, forwarding events of rank 0."""
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self._workers:
            with contextlib.suppress(OSError):  # it has ended; the others will too
                worker.send(("stop", ()))
        pending = list(self._workers)
        while pending and (left := deadline - time.monotonic()) > 0:
            for ready in wait(pending, left):
                try:
                    kind, value = self._receive(ready)
                except Exception:  # it has ended, or the signal interrupted a message
                    kind, value = "error", None
                if kind == "event":
                    self.on_event(*value)
                else:
                    pending = [worker for worker in pending if worker is not ready]
        if pending:
            logger.warning("The work since the last checkpoint is lost: a step takes longer than %s s", STOP_SECONDS)

    def _receive(self, worker: Any) -> Any:
        try:
            return worker.recv()
        except (EOFError, OSError) as error:
            rank = self._workers.index(worker)
            raise StackError(
                f"process {rank} of the {len(self._workers)} that train has died; its output says why"
            ) from error


def _launch(count: int, address: str) -> "subprocess.Popen[bytes]":
    """Start `torch.distributed.run`, as `accelerate launch` does, without the user's accelerate configuration."""
    options = ["--standalone", "--nproc-per-node", str(count), "--module", "sft.devices.ddp_worker"]
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        ADDRESS_VARIABLE: address,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)),
    }
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    # In its own session: a signal to our process group would end the workers before they have saved their work.
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _end_workers(launcher: "subprocess.Popen[bytes]", workers: list[Connection]) -> None:
    for worker in workers:
        worker.close()
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(launcher.pid)
        for process in [started, *started.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    launcher.wait()
