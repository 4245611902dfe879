"""Whatever texts a service sends, the command line prints them within their lines: none moves a cursor or lies."""

import json

import pytest
from typer.testing import CliRunner

import cli.__main__ as cli
from tests.client.scripted_service import Scripted, ScriptedService
from tests.hostile.test_log_lines import BREAKS
from tuneyard_cli.output import escape_lines

FORGED = "FORGED 17  completed"
BAD = "a" + "".join(f"{line_break}{FORGED}" for line_break in BREAKS)
BAD += "\x9b2J\x85[link=http://evil.example]x[/link]"
ID = "550e8400-e29b-41d4-a716-446655440000"
WHEN = "2026-01-01T00:00:00+00:00"
JOB = {
    "job_id": ID,
    "status": "failed",
    "name": BAD,
    "config": {"model_name": BAD, "dataset_version": BAD, "lora_name": BAD, "metadata": {BAD: BAD}},
    "start_time": 1712334054.5,
    "phase": BAD,
    "output_path": BAD,
    "tracking_url": BAD,
    "error": BAD,
    "error_code": BAD,
    "waiting_for": BAD,
    "result": {"warnings": [BAD], BAD: BAD},
}
LINE = {"timestamp": WHEN, "level": BAD, "logger": BAD, "message": BAD}
DELIVERY = {
    **{"delivery_id": BAD, "webhook_id": BAD, "job_id": BAD, "event": BAD, "status": BAD, "url": BAD, "state": BAD},
    "attempts": [{"time": WHEN, "status_code": None, "error": BAD}],
}
SAVED = {"config_id": ID, "name": BAD, "config": {"base_model": BAD}, "version": 1}
MODEL = {"id": BAD, "object": "model", "created": 1, "owned_by": BAD, "parent": BAD}
CHUNK = {"id": BAD, "created": 1, "model": BAD, "choices": [{"index": 0, "delta": {"content": BAD.replace("\n", "")}}]}
CHAT = Scripted(body=f"data: {json.dumps(CHUNK)}\n\ndata: [DONE]\n\n")
BROKEN = Scripted(body=f"data: {json.dumps({'error': {'message': BAD, 'type': BAD, 'code': BAD}})}\n\n")
COMMANDS = {
    "list": (["list"], [[JOB]]),
    "show": (["show", ID], [JOB]),
    "watch": (["watch", ID], [JOB]),
    "logs": (["logs", ID], [LINE]),
    "logs as JSON": (["logs", ID, "--json"], [LINE]),
    "list as JSON": (["list", "--json"], [[JOB]]),
    "deliveries": (["deliveries", ID], [{"deliveries": [DELIVERY]}]),
    "cancel": (["cancel", ID], [{"status": BAD, "message": BAD}]),
    "configs": (["configs", "list"], [[SAVED]]),
    "a configuration": (["configs", "show", ID], [SAVED]),
    "an error": (["show", ID], [Scripted(404, json.dumps({"detail": BAD, "code": BAD, "request_id": BAD}))]),
    "an error of the service": (["show", ID], [Scripted(500, json.dumps({"detail": BAD, "request_id": BAD}))]),
    "an error as JSON": (["show", ID, "--json"], [Scripted(503, json.dumps({"detail": BAD, "code": BAD}))]),
    "a chat beside its base": (["chat", "m", "Who?", "--base"], [MODEL, CHAT, CHAT]),
    "a chat as JSON": (["chat", "m", "Who?", "--base", "--json"], [MODEL, CHAT, CHAT]),
    "a base that is none": (["chat", "m", "Who?", "--base"], [MODEL | {"parent": None}]),
    "an error within a chat": (["chat", "m", "Who?"], [MODEL, BROKEN]),
    "no JSON": (["show", ID], [Scripted(502, BAD.encode("utf-8", "surrogatepass"))]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_texts_of_others_stay_within_their_lines(command, monkeypatch):
    monkeypatch.delenv("TUNEYARD_API_KEY", raising=False)
    arguments, answers = COMMANDS[command]
    service = ScriptedService(*(a if isinstance(a, Scripted) else Scripted(body=json.dumps(a)) for a in answers))
    try:
        result = CliRunner().invoke(cli.main, arguments, env={"TUNEYARD_URL": service.url, "COLUMNS": "200"})
    finally:
        service.close()
    printed = result.stdout + result.stderr
    assert printed.strip()
    assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit), result.exception
    assert escape_lines(printed) == printed
    assert not [line for line in printed.splitlines() if line.startswith("FORGED")]
