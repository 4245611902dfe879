"""How commands end: exit codes, errors as lines and as JSON, closed pipes, and text that could mislead a terminal."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import yaml
from typer.testing import CliRunner

import cli.__main__ as cli
from jobs.settings import PROJECT_ROOT
from tests.client.scripted_service import Scripted, ScriptedService
from tuneyard_cli.exit import MEANINGS, ExitCode
from tuneyard_wire.jobs import Result

JOB_ID = "0197ab3c-1d2e-7f00-8123-456789abcdef"
JOB = {"job_id": JOB_ID, "status": "running", "config": {"model_name": "m"}}
HOSTILE = "a\x1b[31mb\u202ec\nd\te"


@pytest.fixture
def serve():
    """Makes services that give these answers."""
    opened = []

    def serve(*answers):
        opened.append(
            ScriptedService(*(a if isinstance(a, Scripted) else Scripted(body=json.dumps(a)) for a in answers))
        )
        return opened[-1]

    yield serve
    for service in opened:
        service.close()


@pytest.fixture
def run(serve):
    """Runs a command against a service that gives these answers."""

    def run(arguments, *answers, **environment):
        environment = {"TUNEYARD_URL": serve(*answers).url, **environment}
        return CliRunner().invoke(cli.main, arguments, env=environment)

    return run


def refusal(status, code="x"):
    return Scripted(status, json.dumps({"detail": "a: bad\nb: worse", "code": code, "request_id": "r7"}))


def start(arguments, url):
    """A command in a process of its own, as a shell starts it; tests in the background may be deaf to SIGINT."""
    return subprocess.Popen(
        [sys.executable, "-m", "cli", *arguments],
        cwd=PROJECT_ROOT,
        env={**os.environ, "TUNEYARD_URL": url, "PYTHONPATH": str(PROJECT_ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, 3), (401, 3), (403, 3), (404, 3), (409, 3), (413, 3), (422, 3), (500, 4), (502, 4), (503, 4), (504, 4)],
)
def test_a_refusal_and_a_failure_of_the_service_differ(run, status, code):
    result = run(["cancel", JOB_ID], refusal(status))
    note = " (request r7)" if status >= 500 else ""
    assert (result.exit_code, result.stdout) == (code, "")
    hint = "; commands read it from TUNEYARD_API_KEY" if status == 401 else ""
    assert result.stderr == f"tuneyard: a: bad; b: worse{hint}{note}\n"


def test_a_service_that_asks_for_patience_is_not_ready(run):
    assert run(["cancel", JOB_ID], refusal(429)).exit_code == ExitCode.UNAVAILABLE


@pytest.mark.parametrize(
    "command", [["list"], ["show", JOB_ID], ["cancel", JOB_ID], ["configs", "list"], ["logs", JOB_ID]]
)
def test_errors_are_json_on_stderr_and_nothing_is_on_stdout(run, command):
    result = run([*command, "--json"], refusal(404, "job_not_found"))
    assert (result.exit_code, result.stdout) == (3, "")
    assert json.loads(result.stderr) == {"detail": "a: bad\nb: worse", "code": "job_not_found", "request_id": "r7"}


@pytest.mark.parametrize("progress", [None, {"step": 2, "total_steps": 9, "percent": 22.2}])
def test_a_watch_that_fails_prints_its_error_alone(run, progress):
    lost = refusal(404, "job_not_found")
    watched = [{**JOB, "progress": progress}] if progress else []
    result = run(["watch", JOB_ID, "--json"], *watched, lost)
    assert (result.exit_code, result.stdout) == (3, "")
    *shown, error = result.stderr.splitlines()
    assert json.loads(error)["code"] == "job_not_found"
    assert (all(shown), bool(shown)) == (True, progress is not None)


def test_nobody_answering_is_told_with_the_address():
    for url, code in (("http://127.0.0.1:9", 4), ("nonsense", 2), ("http://[::1", 2), ("http://a:b", 2)):
        result = CliRunner().invoke(cli.main, ["cancel", JOB_ID], env={"TUNEYARD_URL": url})
        assert (result.exit_code, result.stdout) == (code, "")
        assert url in result.stderr
    in_json = CliRunner().invoke(cli.main, ["cancel", JOB_ID, "--json"], env={"TUNEYARD_URL": "http://127.0.0.1:9"})
    assert json.loads(in_json.stderr)["code"] == "unreachable"


def test_a_missing_key_is_told_with_the_variable_that_holds_it(run):
    result = run(["list"], refusal(401, "unauthorized"))
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr.endswith("; commands read it from TUNEYARD_API_KEY\n")


def test_a_job_without_deliveries_is_told_as_such(run):
    result = run(["deliveries", JOB_ID], {"deliveries": []})
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.startswith("The job has no deliveries")


def test_without_a_service_here_the_command_that_starts_one_is_named():
    result = CliRunner().invoke(cli.main, ["cancel", JOB_ID], env={"TUNEYARD_URL": None, "TUNEYARD_API_PORT": "9"})
    assert result.exit_code == 4
    assert result.stderr.endswith("is the service running? Start it with `tuneyard serve`, or name one with --url\n")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TUNEYARD_API_PORT", "abc", "TUNEYARD_API_PORT: must be a whole number, got 'abc'"),
        ("TUNEYARD_API_PORT", "0", "TUNEYARD_API_PORT: must be at least 1, got '0'"),
        ("TUNEYARD_DTYPE", "fp8", "TUNEYARD_DTYPE: must be 'bf16', 'fp16' or 'none', got 'fp8'"),
        ("TUNEYARD_KEEP_PLANNER", "perhaps", "TUNEYARD_KEEP_PLANNER: must be true or false, got 'perhaps'"),
        ("TUNEYARD_CORS_ORIGINS", "x", 'TUNEYARD_CORS_ORIGINS must be JSON, such as a list: ["a"]'),
        ("TUNEYARD_PLAN_DEVICES", "x", 'TUNEYARD_PLAN_DEVICES must be JSON, such as {"lab": {"memory_gib": 48}}'),
        ("TUNEYARD_PLAN_DEVICES", "[1]", "TUNEYARD_PLAN_DEVICES: must be an object, got [1]"),
        ("TUNEYARD_PLAN_DEVICES", '{"lab": 3}', "TUNEYARD_PLAN_DEVICES.lab: must be an object, got 3"),
        (
            "TUNEYARD_PLAN_DEVICES",
            '{"lab": {"memory_gib": -1}}',
            "TUNEYARD_PLAN_DEVICES.lab.memory_gib: must be greater than 0, got -1",
        ),
        (
            "TUNEYARD_PLAN_DEVICES",
            '{"lab": {"memory_gib": 80, "tflops": 9}}',
            "TUNEYARD_PLAN_DEVICES.lab.tflops is not a known field; did you mean teraflops?",
        ),
        (
            "TUNEYARD_PLAN_DEVICES",
            '{"lab": {"memory_gib": 8, "bf16": false, "compute_capability": 8.9}}',
            "TUNEYARD_PLAN_DEVICES.lab: bf16 false contradicts compute_capability 8.9: devices have bf16 from 8.0 on; "
            "set bf16 to true, got {'memory_gib': 8, 'bf16': False, 'compute_capability': 8.9}",
        ),
    ],
)
def test_a_setting_that_can_not_be_read_is_named(name, value, told):
    for command in ("list", "status"):
        result = CliRunner().invoke(cli.main, [command], env={name: value, "TUNEYARD_URL": None})
        assert (result.exit_code, result.stderr) == (2, f"tuneyard: {told}\n")


def test_a_secret_that_can_not_be_used_is_not_shown():
    result = CliRunner().invoke(cli.main, ["status"], env={"TUNEYARD_WEBHOOK_SECRETS": "hunter2"})
    assert result.exit_code == 2
    assert "TUNEYARD_WEBHOOK_SECRETS" in result.stderr
    assert "hunter2" not in result.output
    key = CliRunner().invoke(cli.main, ["list"], env={"TUNEYARD_API_KEY": "hunter2ü"})
    assert (key.exit_code, "TUNEYARD_API_KEY" in key.stderr, "hunter2" in key.output) == (2, True, False)


def test_an_answer_of_another_program_is_told_as_such(run):
    assert run(["list"], Scripted(body="<html>")).exit_code == ExitCode.UNAVAILABLE


@pytest.mark.parametrize("arguments", [["show"], ["nonsense"], ["list", "-n", "0"], ["list", "--status", "gone"]])
def test_wrong_usage_is_one_line_and_names_the_help(arguments):
    result = CliRunner().invoke(cli.main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    message, remedy = result.stderr.splitlines()
    assert message.startswith("tuneyard: ")
    assert re.fullmatch(r"Try `.* --help`\.", remedy)
    assert json.loads(CliRunner().invoke(cli.main, [*arguments, "--json"]).stderr)["code"] == "usage"


def test_no_command_shows_the_help():
    for arguments in ([], ["configs"], ["keys"]):
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exit_code == 2
        assert "Usage:" in result.output


def test_the_exit_codes_are_in_the_help_and_in_the_documentation():
    shown = CliRunner().invoke(cli.main, ["--help"], env={"COLUMNS": "200"}).stdout
    page = (PROJECT_ROOT / "docs/reference/command-line.md").read_text()
    assert set(MEANINGS) == set(ExitCode)
    for code, meaning in MEANINGS.items():
        assert f"{code.value}  {meaning}" in shown
        assert f"| {code.value} | {meaning} |" in page


def test_the_version_is_printed():
    result = CliRunner().invoke(cli.main, ["--version"])
    assert (result.exit_code, result.stdout) == (0, "tuneyard 0.1.0\n")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("tuneyard sub", "submit"), ("tuneyard submit --web", "--webhook-event"), ("tuneyard keys rev", "revoke"),
        ("tuneyard list --status fa", "failed"),
    ],
)  # fmt: skip
def test_shells_complete_commands_options_and_values(words, offered):
    environment = {
        "_TUNEYARD_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    result = CliRunner().invoke(cli.main, [], env=environment, prog_name="tuneyard")
    assert offered in result.stdout.split()


@pytest.mark.parametrize("command", ["show", "cancel", "logs", "deliveries"])
def test_a_job_is_named_by_how_its_id_begins(serve, command):
    service = serve([JOB], Scripted(404, json.dumps({"detail": "gone", "code": "job_not_found"})))
    CliRunner().invoke(cli.main, [command, JOB_ID[:6]], env={"TUNEYARD_URL": service.url})
    first, second = service.received
    assert first.path == f"/train?id_prefix={JOB_ID[:6]}&limit=11"
    assert second.path.startswith(f"/train/{JOB_ID}")


def test_an_ambiguous_beginning_lists_what_it_fits(run):
    twin = {**JOB, "job_id": JOB_ID[:-1] + "0", "config": {"model_name": HOSTILE}}
    result = run(["cancel", "0197ab"], [JOB, twin])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "tuneyard: 0197ab matches 2 jobs; give more of the id:",
        f"  {JOB_ID}  running    m",
        f"  {twin['job_id']}  running    a\\x1b[31mb\\u202ec\\nd\te",
    ]
    assert json.loads(run(["cancel", "0197ab", "--json"], [JOB, twin]).stderr)["code"] == "ambiguous"


def test_a_beginning_of_nothing_is_not_found(run):
    result = run(["show", "beef"], [])
    assert (result.exit_code, result.stderr) == (3, "tuneyard: No job id begins with beef\n")


@pytest.mark.parametrize("length", [1, 3])
def test_a_shorter_beginning_is_left_to_the_service(serve, length):
    service = serve(Scripted(404, json.dumps({"detail": "Job x not found", "code": "job_not_found"})))
    result = CliRunner().invoke(cli.main, ["cancel", JOB_ID[:length]], env={"TUNEYARD_URL": service.url})
    assert result.exit_code == 3
    assert [request.method for request in service.received] == ["DELETE"]


def test_a_reader_that_goes_away_ends_a_command_quietly(serve):
    line = {"timestamp": "2026-01-02T03:04:05+00:00", "level": "INFO", "logger": "x", "message": "y"}
    for arguments, answer in ((["logs", JOB_ID], line), (["list"], [JOB]), (["show", JOB_ID, "--json"], JOB)):
        process = start(arguments, serve(answer).url)
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (ExitCode.PIPE_CLOSED, b"")
        process.stderr.close()


@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    [
        ("--help | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("--version >/dev/full", 4, "tuneyard: the output can't be written: No space left on device\n"),
        ("--version >&-", 0, ""),
        ("--nope 2>/dev/full", 4, ""),
    ],
)
def test_output_that_can_not_be_written_ends_without_a_traceback(redirection, code, told):
    ended = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m tuneyard_cli {redirection}"],
        cwd=PROJECT_ROOT,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", told)


@pytest.mark.parametrize(
    ("variables", "most"),
    [
        ({"COLUMNS": "999999999"}, 1000), ({"COLUMNS": "9" * 5000}, 1000), ({"TERMINAL_WIDTH": "999999999"}, 1000),
        ({"COLUMNS": "²", "LINES": "²", "TERMINAL_WIDTH": "x"}, 80), ({"COLUMNS": "-1", "TERMINAL_WIDTH": "0"}, 80),
        ({"COLUMNS": "60"}, 60), ({"TERMINAL_WIDTH": "60"}, 60),
    ],
)  # fmt: skip
def test_a_help_text_is_as_wide_as_a_terminal_may_be(variables, most):
    done = subprocess.run(
        [sys.executable, "-m", "tuneyard_cli", "--help"], cwd=PROJECT_ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(PROJECT_ROOT), **variables}, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) == most


def test_a_key_that_can_not_be_sent_is_not_shown():
    for key in ("secret ", " secret", "sec\nret", "sécret"):
        result = CliRunner().invoke(cli.main, ["list", "--url", "http://127.0.0.1:9"], env={"TUNEYARD_API_KEY": key})
        assert result.exit_code == 2
        assert result.stderr == "tuneyard: the API key has invalid characters; check TUNEYARD_API_KEY\n"


def test_ctrl_c_ends_a_command_quietly_and_says_how_to_go_on(serve):
    service = serve(JOB)
    process = start(["watch", JOB_ID], service.url)
    deadline = time.monotonic() + 60
    while len(service.received) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert b"Traceback" not in output + errors
    assert f"The job continues: `tuneyard watch {JOB_ID}`" in errors.decode()


def test_what_others_wrote_does_not_move_the_cursor(run):
    hostile = {**JOB, "config": {"model_name": HOSTILE, "lora_name": "ü漢"}, "error": HOSTILE}
    line = {"timestamp": "2026-01-02T03:04:05+00:00", "level": "INFO", "logger": "x", "message": HOSTILE}
    saved = {"config_id": JOB_ID, "name": HOSTILE, "config": {"run_name": HOSTILE}}
    for arguments, answer in (
        (["list"], [hostile]), (["show", JOB_ID], hostile), (["logs", JOB_ID], line), (["configs", "list"], [saved]),
        (["configs", "show", JOB_ID], saved), (["cancel", JOB_ID], {"status": "cancelled", "message": HOSTILE}),
        (["watch", JOB_ID], {**hostile, "status": "failed"}), (["cancel", JOB_ID], Scripted(404, json.dumps(
            {"detail": HOSTILE, "code": "x"}))),
    ):  # fmt: skip
        result = run(arguments, answer)
        assert "\x1b" not in result.output
        assert "\u202e" not in result.output
    assert len(run(["list"], [hostile]).stdout.splitlines()) == 2
    assert "ü漢" in run(["list"], [hostile]).stdout
    assert yaml.safe_load(run(["show", JOB_ID], hostile).stdout)["error"] == HOSTILE
    assert yaml.safe_load(run(["show", JOB_ID], hostile | {"error": "ü"}).stdout)["config"] == hostile["config"]


def test_output_that_is_no_terminals_is_plain(run):
    for environment in ({}, {"NO_COLOR": "1"}):
        assert "\x1b" not in run(["list"], [JOB], **environment).output
        assert "\x1b" not in run(["nonsense"], **environment).output


def test_a_terminal_that_can_not_show_a_character_gets_its_number(serve):
    url = serve([{**JOB, "config": {"model_name": "ü漢"}}]).url
    done = subprocess.run(
        [sys.executable, "-m", "cli", "list"], cwd=PROJECT_ROOT, capture_output=True, check=False, timeout=60,
        env={**os.environ, "TUNEYARD_URL": url, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(PROJECT_ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\xfc\u6f22" in done.stdout


def test_warnings_of_a_submission_are_on_stderr_or_in_the_json(run):
    warned = {"job_id": "17", "status": "queued", "warnings": [{"code": "x", "message": "no such\x1bmodel"}]}
    arguments = ["submit", "--model", "m", "--dataset", "v1"]
    result = run(arguments, warned)
    assert (result.stdout, result.stderr.splitlines()[0]) == ("17\n", "warning: no such\\x1bmodel")
    result = run([*arguments, "--json"], warned)
    assert (json.loads(result.stdout)["warnings"], result.stderr) == (warned["warnings"], "")


def test_what_a_result_warns_of_is_shown_when_the_job_has_ended(run):
    ended = {
        **JOB,
        "status": "completed",
        "output_path": "/out",
        "result": Result.example() | {"warnings": ["3 rows were skipped"]},
    }
    result = run(["watch", JOB_ID], ended)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "completed: /out")
    assert "warning: 3 rows were skipped\n" in result.stderr


def test_every_command_that_prints_can_print_json():
    def walk(group, path=()):
        for name, command in group.commands.items() if hasattr(group, "commands") and group.commands else []:
            yield from walk(command, (*path, name)) if hasattr(command, "commands") else [((*path, name), command)]

    commands = dict(walk(cli.typer.main.get_command(cli.main)))
    commands |= {("keys", name): command for name, command in cli._load_keys().commands.items()}
    without = [
        path for path, one in commands.items() if not any("--json" in parameter.opts for parameter in one.params)
    ]
    assert without == [("serve",)]
