"""The embedded PostgreSQL server in state folders that its user can't reach, or whose paths are odd."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text

from jobs.stack import postgres
from tests.bare_postgres import server
from tests.conftest import is_gone, wait_until


def modes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mode for path in (folder, *folder.parents)}


def test_a_closed_folder_above_the_state_folder_stays_closed(tmp_path: Path) -> None:
    """As root too, whose PostgreSQL runs as another user; /root itself is such a folder."""
    closed = tmp_path / "closed"
    home = closed / ("long" * 30) / '60%(done) it\'s "Müller" #1,{x}'
    home.mkdir(parents=True)
    closed.chmod(0o700)
    home.chmod(0o700)
    before = modes(home)
    with server(home) as url:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("CREATE EXTENSION pg_trgm"))  # a library of the wheel's, which Prefect needs
            assert connection.execute(text("SELECT similarity('abc', 'abc')")).scalar() == 1
        engine.dispose()
        assert modes(home) == before
    assert (home / "postgres").stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's server runs as another user")
def test_programs_that_the_servers_user_can_not_reach_are_copied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A virtual environment below /root: the folder stays closed, the server runs from a copy."""
    installed = tmp_path / "venv" / "pginstall"
    (installed / "bin").mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (installed / "bin" / name).write_text("#!/bin/sh\nexit 0\n")
        (installed / "bin" / name).chmod(0o700)
    monkeypatch.setattr(postgres, "_installed", lambda: installed)
    monkeypatch.setattr(postgres, "PROGRAMS", tmp_path / "programs")
    old = os.umask(0o077)
    try:
        postgres._provide_programs(postgres.SYSTEM_USER)
    finally:
        os.umask(old)
    program = postgres._binary("postgres", postgres.SYSTEM_USER)
    assert program.is_relative_to(tmp_path / "programs")
    assert program.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "programs").stat().st_mode & 0o777 == 0o755
    assert installed.stat().st_mode == installed.parent.stat().st_mode
    assert postgres._binary("postgres", None) == installed / "bin" / "postgres"


def test_a_socket_that_a_killed_server_left_is_no_obstacle(tmp_path: Path) -> None:
    with server(tmp_path):
        pass
    (tmp_path / "postgres" / ".s.PGSQL.5432").touch()
    (tmp_path / "postgres" / ".s.PGSQL.5432.lock").write_text(f"{os.getpid()}\n")
    with server(tmp_path) as url:
        assert postgres.is_ready(url)


def test_a_server_whose_backend_was_killed_ends_for_the_process_manager_to_restart(tmp_path: Path) -> None:
    """PostgreSQL 18.6 that recovers by itself waits for ever, once in some twenty times, when recovery can't write."""
    with server(tmp_path) as url:
        engine = create_engine(url)
        with engine.connect() as connection:
            backend = psutil.Process(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
            postmaster = backend.parent()
            assert postmaster is not None
            backend.kill()
            wait_until(lambda: is_gone(postmaster), 60)
            connection.invalidate()
        engine.dispose()


def test_launch_enters_a_folder_and_names_itself_as_the_parent(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.stack.launch", "--parent", "--within", str(tmp_path), "--"]
    said = "import os; print(os.getcwd(), os.getpid() == int(os.environ['TUNEYARD_PARENT_PID']))"
    done = subprocess.run([*command, sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(tmp_path), "True"]
