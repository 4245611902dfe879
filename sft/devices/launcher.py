"""One training run on several devices: a process for each, started by torch's launcher."""

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
from typing import Any

import psutil
import torch

from sft.callbacks import OnEvent
from sft.config import SFTConfig
from sft.data.tokenization import PreparedData
from sft.errors import StackError
from sft.files.publication import Publishing
from sft.models.hardware import check_hardware, inspect_hardware
from sft.models.loading import name_precision
from sft.planning.room import check_room
from sft.training.model_card import Provenance
from sft.training.precision import settle_dtype
from sft.training.session import TrainingSession

logger = logging.getLogger(__name__)

ADDRESS_VARIABLE = "SFT_GROUP_ADDRESS"  # port and secret, for the members
START_SECONDS = 600
POLL_SECONDS = 0.5
STOP_SECONDS = 10  # for the batch at hand and its checkpoint, when a run is stopped


def open_session(
    config: SFTConfig,
    prepared: PreparedData,
    model_path: Path,
    output_dir: Path,
    on_event: OnEvent | None = None,
    checkpoint_dir: Path | None = None,
    publishing: Publishing = nullcontext,
) -> "TrainingSession | DistributedSession":
    """A session on as many devices as `num_devices` says; arguments and errors are those of `TrainingSession`.

    Raises DiskFull, before anything is loaded, when the job's files would not fit.
    """
    check_room(config, prepared, model_path, output_dir, checkpoint_dir or output_dir / "checkpoints")
    kind = TrainingSession if config.num_devices == 1 else DistributedSession
    return kind(config, prepared, model_path, output_dir, on_event, checkpoint_dir, publishing)


class DistributedSession:
    """As `TrainingSession`, with a process for each of `num_devices` devices that train side by side.

    Each process is a `TrainingSession` of its own with every `num_devices`-th batch; gradients are averaged by
    DistributedDataParallel, weighted by tokens. What the first of them tells reaches `on_event` here, on the calling
    thread. The processes end with this object, with its process, or when one of them fails.

    Raises:
        InvalidConfig: fewer devices than asked for, or as `TrainingSession` does.
        ModelNotFound: as `TrainingSession` does.
    """

    def __init__(
        self,
        config: SFTConfig,
        prepared: PreparedData,
        model_path: Path,
        output_dir: Path,
        on_event: OnEvent | None = None,
        checkpoint_dir: Path | None = None,
        publishing: Publishing = nullcontext,
    ) -> None:
        check_hardware(config, inspect_hardware())
        self.on_event: OnEvent = on_event or (lambda name, values: None)
        if config.mixed_precision == "auto":  # measured once: each process might come to an answer of its own
            checkpoints = checkpoint_dir or output_dir / "checkpoints"
            precision = name_precision(settle_dtype(config, checkpoints))
            config = config.model_copy(update={"mixed_precision": precision})
        secret = secrets.token_bytes(32)
        with Listener(("127.0.0.1", 0), backlog=config.num_devices, authkey=secret) as listener:
            self._launcher = _launch(config.num_devices, f"{listener.address[1]}:{secret.hex()}")
            self._members: list[Connection] = []
            self._end = weakref.finalize(self, _end_group, self._launcher, self._members)
            try:
                self._accept(listener, config.num_devices)
                self.adaptation, self.warnings = self._call(
                    "open", config, prepared, model_path, output_dir, checkpoint_dir, publishing
                )
            except BaseException:
                self.close()
                raise

    def evaluate(self) -> dict[str, Any]:
        """As `TrainingSession.evaluate`, over all held-out rows."""
        metrics: dict[str, Any] = self._call("evaluate")
        return metrics

    @property
    def keeps_start(self) -> bool:
        """False: the start is to be evaluated before training."""
        return False

    def evaluate_start(self) -> dict[str, Any]:
        """As `TrainingSession.evaluate_start`, before training."""
        metrics: dict[str, Any] = self._call("evaluate_start")
        return metrics

    def train(self) -> dict[str, Any]:
        """As `TrainingSession.train`; tokens and losses are those of all processes.

        When a signal stops it, the processes finish the batch at hand and save their last whole step, within
        STOP_SECONDS; what takes longer, an evaluation in the midst of training for one, is cut off without.
        """
        result: dict[str, Any] = self._call("train")
        self.warnings = self._call("list_warnings")
        return result

    def save(self, adapter_dir: Path, provenance: Provenance | None = None) -> Path:
        """As `TrainingSession.save`."""
        self._call("save", adapter_dir, provenance)
        return adapter_dir

    def close(self) -> None:
        """End the processes. Safe to call again."""
        self._end()

    def _accept(self, listener: Listener, count: int) -> None:
        """Wait until each process has reported; its first message is its rank."""
        deadline = time.monotonic() + START_SECONDS
        found: dict[int, Connection] = {}
        while len(found) < count:
            if wait([listener._listener._socket], POLL_SECONDS):  # type: ignore[attr-defined]  # it has no timeout
                member = listener.accept()
                found[member.recv()] = member
            elif self._launcher.poll() is not None or time.monotonic() > deadline:
                raise StackError(f"the {count} processes of num_devices did not start; their output says why")
        self._members.extend(found[rank] for rank in range(count))

    def _call(self, method: str, *arguments: Any) -> Any:
        """Have every process do this, passing on what the first one tells; its result."""
        try:
            for member in self._members:
                member.send((method, arguments))
            pending, result = list(self._members), None
            while pending:
                for ready in wait(pending, POLL_SECONDS):
                    kind, value = self._receive(ready)
                    if kind == "event":
                        self.on_event(*value)
                        continue
                    if kind == "error":
                        raise value
                    result = value if ready is self._members[0] else result
                    pending = [member for member in pending if member is not ready]
            return result
        except Exception:
            self.close()
            raise
        except BaseException:  # stopped from outside, by a signal
            try:
                if method == "train":
                    self._stop()
            finally:
                self.close()
            raise

    def _stop(self) -> None:
        """Tell the processes to stop and wait until all of them have, passing on what the first one tells."""
        deadline = time.monotonic() + STOP_SECONDS
        for member in self._members:
            with contextlib.suppress(OSError):  # it has ended; so will the others
                member.send(("stop", ()))
        pending = list(self._members)
        while pending and (left := deadline - time.monotonic()) > 0:
            for ready in wait(pending, left):
                try:
                    kind, value = self._receive(ready)
                except Exception:  # dead, or the signal came in the midst of a message
                    kind, value = "error", None
                if kind == "event":
                    self.on_event(*value)
                else:
                    pending = [member for member in pending if member is not ready]
        if pending:
            logger.warning("The work since the last checkpoint is lost: a step takes longer than %s s", STOP_SECONDS)

    def _receive(self, member: Any) -> Any:
        try:
            return member.recv()
        except (EOFError, OSError) as error:
            rank = self._members.index(member)
            raise StackError(
                f"process {rank} of the {len(self._members)} that train has died; its output says why"
            ) from error


def _launch(count: int, address: str) -> "subprocess.Popen[bytes]":
    """`torch.distributed.run`, which `accelerate launch` runs too, without the user's accelerate configuration."""
    options = ["--standalone", "--nproc-per-node", str(count), "--module", "sft.devices.ddp_worker"]
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        ADDRESS_VARIABLE: address,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // count)),
    }
    command = [sys.executable, "-m", "torch.distributed.run", *options]
    # In a session of its own: a signal to the group of processes would end them before they have saved their work.
    return subprocess.Popen(command, env=environment, start_new_session=True)


def _end_group(launcher: "subprocess.Popen[bytes]", members: list[Connection]) -> None:
    for member in members:
        member.close()
    with contextlib.suppress(psutil.NoSuchProcess):
        started = psutil.Process(launcher.pid)
        for process in [started, *started.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    launcher.wait()
