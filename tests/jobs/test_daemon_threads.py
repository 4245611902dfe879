"""Threads for calls that may hang."""

import subprocess
import sys
import threading

import pytest

from jobs.daemon_threads import DaemonThreads
from jobs.project import PROJECT_ROOT

HANGING = """
import threading
from jobs.daemon_threads import DaemonThreads
DaemonThreads("hanging").start(threading.Event().wait)
"""


def test_a_call_has_its_result_or_its_error() -> None:
    threads = DaemonThreads("test")
    assert threads.start(lambda: 7).result(60) == 7
    with pytest.raises(ZeroDivisionError):
        threads.start(lambda: 1 // 0).result(60)
    with pytest.raises(SystemExit):
        threads.start(sys.exit).result(60)
    assert threads.start(threading.get_ident).result(60) != threading.get_ident()


def test_threads_are_kept_and_a_call_that_hangs_holds_up_no_other() -> None:
    threads, release = DaemonThreads("test"), threading.Event()
    hanging = [threads.start(release.wait) for _ in range(3)]
    used = {threads.start(threading.get_ident).result(60) for _ in range(40)}
    assert len(used) < 20  # one that has just answered may not be idle yet
    assert not any(future.done() for future in hanging)
    release.set()
    assert all(future.result(60) for future in hanging)


def test_a_call_that_finds_no_thread_is_not_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, made = DaemonThreads("test"), []

    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            threads.start(lambda: made.append("refused"))
    assert threads.start(lambda: 7).result(60) == 7
    assert made == []


def test_a_process_ends_while_a_call_hangs() -> None:
    subprocess.run([sys.executable, "-c", HANGING], cwd=PROJECT_ROOT, timeout=60, check=True)
