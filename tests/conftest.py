"""What every test gets: an environment without the user's settings, and one real local stack for those that ask."""

import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from xdist.remote import Producer

from jobs.settings import Settings
from jobs.stack.local import down, ensure_up
from jobs.stack.process_manager import stack_processes
from tasks.dataset_registry import build_registry
from tests.lanes import TwoEnds, sort_for_lanes
from tests.stack_guard import stopping_stack

# Of the tests' stacks, the new and the old one of a rotation.
WEBHOOK_SECRETS = [f"whsec_{b64encode(letter * 32).decode()}" for letter in (b"n", b"o")]

ONE_ATTEMPT = ("chaos", "pool", "attack")  # folders

_patch = pytest.MonkeyPatch()
_home = pytest.StashKey[tempfile.TemporaryDirectory[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Before anything is imported: no setting and no state of the user's reaches a test, nor the other way round."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop from outside tears down like Ctrl-C
    folder = tempfile.TemporaryDirectory(prefix="tuneyard-tests-")
    config.stash[_home] = folder
    for name in [name for name in os.environ if name.startswith(("TUNEYARD_", "PREFECT_", "MLFLOW_"))]:
        _patch.delenv(name)
    _patch.setenv("HOME", folder.name)
    _patch.setenv("TUNEYARD_HOME", f"{folder.name}/tuneyard")
    _patch.setenv("TUNEYARD_WEBHOOK_ALLOW", "127.0.0.0/8")  # where the tests' receivers are
    _patch.setenv("TUNEYARD_WEBHOOK_SECRETS", ",".join(WEBHOOK_SECRETS))
    # Each check starts a process that loads the training libraries; the tests of the check turn it on.
    _patch.setenv("TUNEYARD_SERVING_CHECK_SECONDS", "0")
    _patch.setenv("TUNEYARD_KEEP_PLANNER", "false")  # else every API of every test would load the training libraries


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test that fails is tried once more: its processes share the machine with those of the other tests.

    Both attempts' tracebacks are printed, and `--max-suite-reruns` ends this where more than a few need it. The runs
    that look for what gets lost under faults have one attempt.
    """
    for item in items:
        if item.path.parent.name not in ONE_ATTEMPT:
            item.add_marker(pytest.mark.flaky(reruns=1))
    if hasattr(config, "workerinput"):  # in a lane
        sort_for_lanes(items)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keep Python's garbage collector from what collection loads, which lives to the end.

    Among a million objects of libraries and tests a full collection takes longer than most tests, and training calls
    for some.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> TwoEnds | None:
    """Deal files out from both ends where a file belongs to one lane."""
    return TwoEnds(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """No test may start a stack in the default state folder unasked: it would outlive the tests."""
    if down(Settings()):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        sys.stderr.write("\nA test started a stack in the default state folder; it was stopped.\n")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Give the user's environment back."""
    _patch.undo()
    config.stash[_home].cleanup()


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """The usual one for each test: commands and the app, run in this process by a test or a fixture, change it."""
    os.umask(0o022)
    yield
    os.umask(0o022)


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def stack_settings(home: Path) -> Settings:
    """Settings of a stack of its own in this folder."""
    return Settings(home=home, prefect_port=free_port(), mlflow_port=free_port())


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended, though whoever started it may not have noticed yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def command_line(process: psutil.Process) -> list[str]:
    """What a process was started with; nothing for one that ends meanwhile."""
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Return once the condition holds; fail when it does not within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def stack() -> Iterator[Settings]:
    """The settings of one real stack that all tests share; no process of it is left at the end.

    Not below pytest's folder: each pytest that starts closes that to all other users, and PostgreSQL runs as one.
    """
    with tempfile.TemporaryDirectory(prefix="tuneyard-stack-") as folder:
        settings = stack_settings(Path(folder))
        with stopping_stack(settings):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("OMP_NUM_THREADS", "1")  # so small a model is the slower the more threads there are
                up = ensure_up(settings)
            yield up
        assert stack_processes(settings.home) == []


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The default dataset registry, built once, as a setting of those that need no home of its own."""
    return str(build_registry(tmp_path_factory.mktemp("registry")))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 2 MB."""
    folder = tmp_path / "out"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a filesystem is root's privilege")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
