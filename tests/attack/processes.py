"""Several API processes on one state folder with settings of their own, and one whose temporary folder is full."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from jobs.stack.process_manager import stack_processes
from tests.attack.case import CannotRun, Finding, Harm, Target, case
from tests.attack.connections import hold_half_open
from tests.attack.holding import CONNECTIONS, HELD_SECONDS, SLOW_MS
from tests.chaos.service import FOREIGN
from tests.conftest import free_port
from tests.e2e.api_process import ApiProcess

SETTINGS = {
    "TUNEYARD_REQUIRE_API_KEY": "false", "TUNEYARD_WORKERS": "3", "TUNEYARD_WORK_POOL": "other",
    "TUNEYARD_DEFAULT_DATASET": "other", "TUNEYARD_OUTPUT_ROOT": "elsewhere", "TUNEYARD_MAX_BODY_BYTES": "1000",
}  # fmt: skip
FEW_DESCRIPTORS = ("sh", "-c", 'ulimit -n 256 && exec "$@"', "sh")
LOG_BYTES = 100_000


@contextmanager
def another_api(target: Target, command: Sequence[str] = (), **environment: str) -> Iterator[ApiProcess]:
    """An API process on the state folder that is attacked, with a port and settings of its own.

    Args:
        command: one that starts another, in front of the API's own.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    home = {"TUNEYARD_HOME": str(target.service.settings.home), "TUNEYARD_KEEP_PLANNER": "false"}
    process = ApiProcess({**kept, **home, **environment}, target.folder / "another-api.log", command)
    try:
        yield process.start()
    finally:
        process.close()


@case
def another_process_with_other_settings_opens_nothing_and_starts_nothing(target: Target) -> Iterator[Finding]:
    """It may ask for more, never for less, and uses the stack that is there."""
    before = {process.pid for process in stack_processes(target.service.settings.home)}
    ports = {"TUNEYARD_PREFECT_PORT": str(free_port()), "TUNEYARD_MLFLOW_PORT": str(free_port())}
    with another_api(target, **SETTINGS, **ports) as other:
        yield from _look(target, other)
        queue = other.client.get("/queue", headers=_key(target))
        with target.client("read") as client:
            if queue.is_success and queue.json() != client.get("/queue").json():
                yield Finding(Harm.ESCAPED, f"two processes show two queues: {queue.text}")
    added = {process.pid for process in stack_processes(target.service.settings.home)} - before
    if len(added) > len(before) // 2:
        yield Finding(Harm.ESCAPED, f"a second stack was started: {added}")


@case
def a_full_temporary_folder_stops_no_request(target: Target) -> Iterator[Finding]:
    """That of the API process; the machine's own is left alone."""
    folder = target.folder / "full"
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        raise CannotRun(f"no small file system can be mounted here: {done.stderr.decode().strip()}")
    try:
        with another_api(target, TMPDIR=str(folder)) as other:
            (folder / "filler").write_bytes(bytes(60 * 1024))
            yield from _look(target, other)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


def _look(target: Target, other: ApiProcess) -> Iterator[Finding]:
    for path in ("/queue", "/train", "/api/sft/jobs"):
        if (status := other.client.get(path).status_code) != 401:
            yield Finding(Harm.OPENED, f"{path} of the other process without a key: {status}")
        if (status := other.client.get(path, headers=_key(target)).status_code) != 200:
            yield Finding(Harm.STARVED, f"{path} of the other process with a key: {status}")


def _key(target: Target) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {target.keys['read']}"}


@case
def few_descriptors_are_enough_beside_half_open_connections(target: Target) -> Iterator[Finding]:
    """A process with `ulimit -n 256` answers beside 300 of them, and its log grows by kilobytes."""
    log = target.folder / "another-api.log"
    with another_api(target, FEW_DESCRIPTORS) as other:
        before = log.stat().st_size
        held = hold_half_open(str(other.client.base_url), CONNECTIONS, HELD_SECONDS)
        grown = log.stat().st_size - before
    if held.failed or not held.probes or held.max_latency_ms > SLOW_MS or grown > LOG_BYTES:
        yield Finding(Harm.STARVED, f"with 256 descriptors: {held}, {grown} bytes of log")
