"""Hosts have names, disks, processes and networks of their own, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from jobs.project import PROJECT_ROOT
from tests.conftest import wait_until
from tests.pool import namespaces
from tests.pool.hosts import Site, freeze, thaw

BEGINNING = """
import os, socket, sys, time
from pathlib import Path
from tests.conftest import wait_until
from tests.pool import namespaces
from tests.pool.hosts import Site, freeze, thaw

namespaces.prepare()
folder = Path(sys.argv[1])
site = Site(folder, has_namespaces=True)
host = site.make_host("gpu-1")
host.start()

def ask(*command):
    log = folder / "log"
    log.unlink(missing_ok=True)
    host.launch(command, dict(os.environ), log).wait(60)
    return log.read_text().strip()

def connect():
    program = f"import socket; socket.create_connection(('{site.address}', {port}), 5)"
    return ask(sys.executable, "-c", program)

listener = socket.create_server((site.address, 0))
port = listener.getsockname()[1]
"""


@pytest.fixture
def allowed():
    if obstacle := namespaces.find_obstacle():
        pytest.skip(f"no namespaces: {obstacle}")


def start(folder, program):
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    (folder / "program.py").write_text(BEGINNING + textwrap.dedent(program))
    launcher = "import sys; from tests.pool import namespaces; sys.exit(namespaces.run_inside(sys.argv[1:]))"
    command = [sys.executable, "-c", launcher, sys.executable, str(folder / "program.py"), str(folder)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def run(folder, program):
    process = start(folder, program)
    try:
        output, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, output


@pytest.mark.usefixtures("allowed")
def test_a_host_has_a_name_and_a_disk_of_its_own(tmp_path):
    run(
        tmp_path,
        """
        other = site.make_host("gpu-2")
        other.start()
        assert ask("hostname") == "gpu-1"
        ask("touch", str(host.root / "mine"))
        assert [path.name for path in (site.disks / "gpu-1").iterdir()] == ["mine"]
        assert ask("ls", str(site.disks)) == ""
        assert [*(site.disks / "gpu-2").iterdir()] == []
        site.erase(host)
        assert ask("ls", str(host.root)) == ""
        """,
    )


@pytest.mark.usefixtures("allowed")
def test_a_host_that_is_lost_takes_its_processes_along_and_can_be_started_again(tmp_path):
    run(
        tmp_path,
        """
        sleeper = host.launch(["sh", "-c", "sleep 1000 & sleep 1001"], dict(os.environ), folder / "sleeper")
        while len(host.find_processes()) < 4:
            time.sleep(0.05)
        host.kill()
        assert sleeper.poll() is not None
        assert host.find_processes() == []
        host.start()
        assert ask("hostname") == "gpu-1"
        """,
    )


@pytest.mark.usefixtures("allowed")
def test_a_frozen_host_goes_on_where_it_was(tmp_path):
    run(
        tmp_path,
        """
        log = folder / "clock"
        clock = host.launch(["sh", "-c", "while true; do echo; sleep 0.05; done"], dict(os.environ), log)
        wait_until(lambda: log.stat().st_size > 0, 60)
        for _ in range(5):
            freeze(host)
            before = log.stat().st_size
            time.sleep(0.2)
            assert before == log.stat().st_size
            thaw(host)
            wait_until(lambda: log.stat().st_size > before, 60)
        freeze(host)
        host.kill()
        assert clock.poll() is not None
        """,
    )


@pytest.mark.usefixtures("allowed")
def test_a_host_without_network_reaches_nobody_until_it_is_back(tmp_path):
    run(
        tmp_path,
        """
        assert connect() == ""
        host.cut()
        assert "Error" in connect()
        host.heal()
        assert connect() == ""
        """,
    )


@pytest.mark.usefixtures("allowed")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_of_a_run_that_is_stopped(tmp_path, number):
    process = start(tmp_path, "host.launch(['sleep', '1234.5'], dict(os.environ), folder / 'log')\ntime.sleep(60)")
    wait_until(lambda: find(tmp_path) and (tmp_path / "log").exists(), 60)
    time.sleep(0.3)
    process.send_signal(number)
    process.communicate(timeout=60)
    wait_until(lambda: find(tmp_path) == [], 60)


def test_without_namespaces_a_host_has_a_name_and_a_folder_and_takes_its_processes_along(tmp_path):
    host = Site(tmp_path, has_namespaces=False).make_host("gpu-1")
    host.start()
    log = tmp_path / "log"
    program = "import socket, subprocess, sys; print(socket.gethostname(), flush=True); "
    program += "subprocess.run(['sleep', '1234.5'])"
    launched = host.launch([sys.executable, "-c", program], dict(os.environ), log)
    wait_until(lambda: log.read_text() == "gpu-1\n" and len(host.find_processes()) == 2, 60)
    freeze(host)
    assert {process.status() for process in host.find_processes()} == {psutil.STATUS_STOPPED}
    thaw(host)
    host.kill()
    assert host.find_processes() == []
    assert launched.poll() is not None
    assert host.root == tmp_path / "disks" / "gpu-1"


def find(folder):
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "1234.5" in words or any(str(folder) in word for word in words):
            found.append(process.pid)
    return found
