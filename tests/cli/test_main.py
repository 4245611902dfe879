"""The command line as a user meets it."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

import cli.__main__ as cli
from cli.stack import read_settings
from jobs.settings import PROJECT_ROOT, Settings
from jobs.stack import local as local_stack
from jobs.stack.parts import stack_environment
from jobs.stack.process_manager import stack_processes
from tests.conftest import free_port, stack_settings, wait_until


def environment_of(settings: Settings) -> dict[str, str]:
    return {
        "TUNEYARD_HOME": str(settings.home),
        "TUNEYARD_API_PORT": str(settings.api_port),
        "TUNEYARD_PREFECT_PORT": str(settings.prefect_port),
        "TUNEYARD_MLFLOW_PORT": str(settings.mlflow_port),
    }


def end(process: subprocess.Popen[str]) -> None:
    """Leave neither the process nor its pipes behind."""
    process.kill()
    process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def serve(settings: Settings) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "cli", "serve"],
        cwd=PROJECT_ROOT,
        env=os.environ | environment_of(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_serving(settings: Settings) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{settings.api_port}/docs", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def list_commands(command: Any, path: str = "tuneyard") -> Iterator[tuple[str, Any]]:
    if not hasattr(command, "get_command"):
        yield path, command
        return
    context = command.context_class(command)
    for name in command.list_commands(context):
        yield from list_commands(command.get_command(context, name), f"{path} {name}")


COMMANDS = dict(list_commands(typer.main.get_command(cli.main)))


@pytest.mark.parametrize("path", COMMANDS)
def test_help_texts_speak_of_options_that_exist_and_name_what_to_give_in_capitals(path: str) -> None:
    command = COMMANDS[path]
    options = {name for one in COMMANDS.values() for part in one.params for name in (*part.opts, *part.secondary_opts)}
    texts = [command.help or "", *(getattr(part, "help", None) or "" for part in command.params)]
    assert {word for text in texts for word in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)} <= options
    arguments = [part for part in command.params if part.param_type_name == "argument"]
    assert [part.name for part in arguments if part.metavar is None or part.metavar != part.metavar.upper()] == []


def test_nothing_runs_before_the_first_up(tmp_path: Path) -> None:
    environment = environment_of(stack_settings(tmp_path / "home"))
    shown = CliRunner().invoke(cli.main, ["status"], env=environment).output
    assert [line.split()[:2] for line in shown.splitlines() if not line.startswith(" ")] == [
        ["postgres", "STOPPED"], ["prefect", "STOPPED"], ["mlflow", "STOPPED"], ["worker-0", "STOPPED"],
        ["watchdog", "STOPPED"],
    ]  # fmt: skip
    down = CliRunner().invoke(cli.main, ["down"], env=environment)
    assert (down.exit_code, down.output) == (0, "Nothing was running.\n")
    assert not (tmp_path / "home").exists()


def test_a_taken_api_port_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings = stack_settings(tmp_path / "home").model_copy(update={"api_port": port})
        result = CliRunner().invoke(cli.main, ["serve"], env=environment_of(settings))
    assert result.exit_code == 4
    assert f"tuneyard: The API needs port {port}, which is taken by pid {os.getpid()}" in result.stderr
    assert "set TUNEYARD_API_PORT to a free port" in result.stderr
    assert not settings.home.exists()


@pytest.mark.stack
def test_serve_leaves_a_stack_that_was_up_before(stack: Settings) -> None:
    settings = stack.model_copy(update={"api_port": free_port()})
    process = serve(settings)
    try:
        wait_until(lambda: is_serving(settings), 150)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=90)
    finally:
        end(process)
    assert process.returncode == 0
    assert f"http://127.0.0.1:{settings.api_port}" in output
    assert local_stack.is_up(stack)


@pytest.mark.stack
@pytest.mark.timeout(600)
def test_serve_prints_its_addresses_and_takes_everything_with_it_at_ctrl_c(tmp_path: Path) -> None:
    settings = stack_settings(tmp_path / "home").model_copy(update={"api_port": free_port()})
    process = serve(settings)
    try:
        wait_until(lambda: is_serving(settings), 250)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=150)
    finally:
        end(process)
        local_stack.down(settings)
    assert process.returncode == 0, errors
    assert [line for line in output.splitlines() if not line.startswith("INFO:")] == [
        "Starting the local stack ...",
        f"API         http://127.0.0.1:{settings.api_port}  "
        f"(documentation at http://127.0.0.1:{settings.api_port}/docs)",
        f"Prefect UI  http://127.0.0.1:{settings.prefect_port}",
        f"MLflow UI   http://127.0.0.1:{settings.mlflow_port}",
        "Stopping the local stack ...",
    ]
    assert stack_processes(settings.home) == []


@pytest.mark.stack
@pytest.mark.timeout(600)
def test_ctrl_c_while_the_stack_starts_leaves_nothing_behind(tmp_path: Path) -> None:
    settings = stack_settings(tmp_path / "home").model_copy(update={"api_port": free_port()})
    process = serve(settings)
    try:
        wait_until(lambda: (settings.home / "logs" / "prefect.log").exists(), 150)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=150)
    finally:
        end(process)
        local_stack.down(settings)
    assert process.returncode == 0, errors
    assert stack_processes(settings.home) == []


@pytest.mark.parametrize("debug", [False, True])
def test_debug_reaches_the_jobs_of_a_stack_that_is_started_with_it(monkeypatch, tmp_path, capsys, debug):
    monkeypatch.setenv("TUNEYARD_HOME", str(tmp_path))
    monkeypatch.setenv("TUNEYARD_DEBUG", "false")
    settings = read_settings(debug)
    assert stack_environment(settings)["TUNEYARD_DEBUG"] == str(debug).lower()
    assert capsys.readouterr().err == ""  # there is no stack that would have to be stopped first
