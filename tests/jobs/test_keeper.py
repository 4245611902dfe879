"""The keeper passes signals on, outlives its child, and tells by its exit code how that ended."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from jobs.settings import PROJECT_ROOT
from tests.conftest import wait_until

CHILD = """
import os, pathlib, signal, sys, time
from jobs.keeper import end_with_parent
told = pathlib.Path("told")
def note(number, frame):
    with told.open("a") as file:
        file.write(f"{number} ")
signal.signal(signal.SIGTERM, note)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
end_with_parent()
pathlib.Path("pid").write_text(str(os.getpid()))
code = os.environ["CODE"]
if code == "wait":
    while not told.exists():
        time.sleep(0.02)
    code = "0"
if code == "read":
    from sft.confinement import Limits, confined, step
    with confined(Limits(None, 0.2, None), int(os.environ["TUNEYARD_NOTE"])):
        with step("template_name auto: to write row 3"):
            9 ** (9**9)  # no handler of Python's would run
if code == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(code))
"""


def start(folder: Path, code: str) -> "subprocess.Popen[str]":
    (folder / "flows").mkdir()
    (folder / "flows" / "__init__.py").touch()
    (folder / "flows" / "__main__.py").write_text(CHILD)
    environment = os.environ | {"CODE": code, "PYTHONPATH": f"{folder}{os.pathsep}{PROJECT_ROOT}"}
    command = [sys.executable, "-m", "jobs.keeper"]
    return subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)


def has_text(file: Path) -> bool:
    return file.exists() and bool(file.read_text())


def read_pid(folder: Path) -> int:
    wait_until(lambda: has_text(folder / "pid"), 60)
    return int((folder / "pid").read_text())


@pytest.mark.parametrize(
    ("code", "words", "shown"), [("0", "", 0), ("3", "", 3), ("kill", "was ended by SIGKILL", 137)]
)
def test_the_worker_is_told_of_a_crash_that_could_not_be_recorded(
    tmp_path: Path, code: str, words: str, shown: int
) -> None:
    with start(tmp_path, code) as keeper:
        _, said = keeper.communicate(timeout=90)
    assert keeper.returncode == shown
    assert words in said
    assert ("could not be recorded" in said) == (shown != 0)


def test_a_stop_is_passed_on_once_and_waited_for(tmp_path: Path) -> None:
    with start(tmp_path, "wait") as keeper:
        child = psutil.Process(read_pid(tmp_path))
        assert os.getsid(child.pid) != os.getsid(keeper.pid)
        keeper.send_signal(signal.SIGTERM)
        keeper.communicate(timeout=90)
    assert (keeper.returncode, (tmp_path / "told").read_text()) == (0, "15 ")
    assert not child.is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_killed_keeper_is_a_stop_for_its_child(tmp_path: Path) -> None:
    with start(tmp_path, "wait") as keeper:
        child = psutil.Process(read_pid(tmp_path))
        keeper.kill()
        keeper.communicate(timeout=90)
    wait_until(lambda: (tmp_path / "told").exists(), 60)
    child.wait(60)


TREE = """
import os, signal, subprocess, sys, time
from pathlib import Path
subprocess.Popen(["sh", "-c", "sleep 0.2 & exec true"]).wait()  # an orphan, which becomes process 1's child
def stop(number, frame):
    Path("told").write_text(str(number))
    time.sleep(0.3)
    for _ in range(100):  # the orphan may be about to end
        try:
            states = [Path(f"/proc/{pid}/stat").read_text().split()[2] for pid in os.listdir("/proc") if pid.isdigit()]
        except OSError:
            states = ["Z"]
        if "Z" not in states:
            break
        time.sleep(0.1)
    Path("states").write_text(" ".join(states))
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
Path("pid").write_text(f"{os.getpid()} {os.getppid()}")
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only Linux's root has namespaces")
def test_as_process_1_of_a_container_it_passes_a_stop_on_and_reaps(tmp_path: Path) -> None:
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "__init__.py").touch()
    (tmp_path / "flows" / "__main__.py").write_text(TREE)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT_ROOT}"}
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-m", "jobs.keeper"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as container:
        wait_until(lambda: has_text(tmp_path / "pid") or container.poll() is not None, 60)
        if container.poll() is not None:
            assert "unshare" in container.communicate()[1]
            pytest.skip("no namespaces here")
        assert (tmp_path / "pid").read_text().split()[1] == "1"
        time.sleep(0.5)
        (keeper,) = psutil.Process(container.pid).children()
        keeper.send_signal(signal.SIGTERM)
        container.communicate(timeout=90)
    assert (tmp_path / "told").read_text() == str(int(signal.SIGTERM))
    assert "Z" not in (tmp_path / "states").read_text()
    assert container.returncode == 0


ORPHAN = """
import os, signal, sys, time
from jobs.keeper import end_with_parent
signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
end_with_parent()
"""


@pytest.mark.parametrize(
    ("parent", "says"), [("1", "stopped"), (str(os.getpid()), ""), ("", "")], ids=["another", "this", "unknown"]
)
def test_a_parent_that_is_gone_before_the_kernel_is_asked_is_a_stop_too(parent: str, says: str) -> None:
    environment = os.environ | {"TUNEYARD_PARENT_PID": parent, "PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run([sys.executable, "-c", ORPHAN], env=environment, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == says


def test_why_a_job_was_ended_by_what_it_read_is_told_by_the_keeper(tmp_path: Path) -> None:
    with start(tmp_path, "read") as keeper:
        _, said = keeper.communicate(timeout=120)
    assert keeper.returncode == 128 + signal.SIGPROF, "there is no database to write the job's end to"
    assert "was ended by SIGPROF" in said
    assert "resource_limit: template_name auto: to write row 3 takes more than 0.2 s of CPU time" in said
