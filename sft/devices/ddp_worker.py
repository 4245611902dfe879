"""Worker process of a `DistributedSession`: runs commands from a connection until that closes."""

import os
import queue
import threading
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import torch

from sft.config import SFTConfig
from sft.data.mixing import AnyRows
from sft.devices.launcher import ADDRESS_VARIABLE
from sft.files.publication import Publishing
from sft.training.interruption import Stopped
from sft.training.session import TrainingSession


def main() -> None:
    """Connect to the launcher and serve its commands."""
    port, secret = os.environ.pop(ADDRESS_VARIABLE).split(":")
    rank = int(os.environ["RANK"])
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    connection = Client(("127.0.0.1", int(port)), authkey=bytes.fromhex(secret))
    connection.send(rank)
    commands: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue()
    stopping = threading.Event()
    threading.Thread(target=_read_commands, args=(connection, commands, stopping), daemon=True).start()
    session: TrainingSession | None = None
    while True:
        method, arguments = commands.get()
        try:
            if method == "open":
                session = _open(connection, rank, *arguments)
                result: Any = (session.adaptation, session.warnings)
                session.trainer.is_stopping = stopping.is_set
            else:
                result = _do(session, rank, method, arguments)
        except Stopped:
            result = None
        except Exception as error:
            connection.send(("error", error))
            continue  # the launcher ends all processes; exiting here would make the others fail with other errors
        connection.send(("result", result))


def _read_commands(
    connection: Connection, commands: "queue.Queue[tuple[str, tuple[Any, ...]]]", stopping: threading.Event
) -> None:
    """Put commands on the queue; `stop` sets an event instead, ahead of all others.

    When the connection closes, the launcher's process has ended, so this one exits.
    """
    try:
        while True:
            command = connection.recv()
            if command[0] == "stop":
                stopping.set()
            else:
                commands.put(command)
    except (EOFError, OSError):
        os._exit(1)


def _open(
    connection: Connection,
    rank: int,
    config: SFTConfig,
    prepared: AnyRows,
    model_path: Path,
    output_dir: Path,
    checkpoint_dir: Path | None,
    publishing: Publishing,
) -> TrainingSession:
    def on_event(name: str, values: dict[str, Any]) -> None:
        if rank == 0:
            connection.send(("event", (name, values)))

    return TrainingSession(config, prepared, model_path, output_dir, on_event, checkpoint_dir, publishing)


def _do(session: Any, rank: int, method: str, arguments: tuple[Any, ...]) -> Any:
    if method.startswith("save") and rank != 0:  # all processes have the same weights
        return None
    return getattr(session, method)(*arguments)


if __name__ == "__main__":
    main()
