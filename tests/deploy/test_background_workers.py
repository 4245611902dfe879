"""A worker that a script starts in the background: what the page on process workers says of SIGTERM."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.project import PROJECT_ROOT
from tests.conftest import wait_until

DEFAULT_SIGNALS = "env --default-signal=INT"
WORKER = """
import asyncio, os
from prefect.utilities.processutils import setup_signal_handlers_worker

async def work():
    setup_signal_handlers_worker(os.getpid(), "the worker", lambda text: print(text, flush=True))
    print("up", flush=True)
    await asyncio.sleep(600)

asyncio.run(work())
"""


@pytest.mark.parametrize(("prefix", "is_stopped"), [("", False), (DEFAULT_SIGNALS, True)])
def test_prefects_worker_stops_on_sigterm_only_if_sigint_is_not_ignored(
    tmp_path: Path, prefix: str, is_stopped: bool
) -> None:
    log = tmp_path / "log"
    log.touch()
    script = f'{prefix} "$0" -c "$1" >"$2" 2>&1 & echo $!'
    started = subprocess.run(
        ["sh", "-c", script, sys.executable, WORKER, str(log)], capture_output=True, text=True, check=True
    )
    worker = psutil.Process(int(started.stdout))
    try:
        wait_until(lambda: "up" in log.read_text(), 60)
        worker.send_signal(signal.SIGTERM)
        wait_until(lambda: "Sending SIGINT" in log.read_text(), 60)
        if is_stopped:
            wait_until(lambda: not _is_alive(worker), 60)
        else:
            time.sleep(1)
            assert _is_alive(worker)
    finally:
        if _is_alive(worker):
            worker.kill()


def test_the_page_has_that_command() -> None:
    page = (PROJECT_ROOT / "docs/operations/process-workers.md").read_text(encoding="utf-8")
    assert f"{DEFAULT_SIGNALS} prefect worker start" in page


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
