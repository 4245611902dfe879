"""Whatever texts a service sends, the command line prints them within their lines: none moves a cursor or lies."""

import json

import pytest
from typer.testing import CliRunner

import cli.__main__ as cli
from tests.client.scripted_service import Scripted, ScriptedService
from tests.hostile.test_log_lines import BREAKS
from tuneyard_cli.output import escape_lines
from tuneyard_wire.plan import Plan

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
    "result": {"warnings": [BAD], "serving_check": {"status": BAD, "reason": BAD, "findings": [BAD]}, BAD: BAD},
}
LINE = {"timestamp": WHEN, "level": BAD, "logger": BAD, "message": BAD}
DELIVERY = {
    **{"delivery_id": BAD, "webhook_id": BAD, "job_id": BAD, "event": BAD, "status": BAD, "url": BAD, "state": BAD},
    "attempts": [{"time": WHEN, "status_code": None, "error": BAD}],
}
SAVED = {"config_id": ID, "name": BAD, "config": {"base_model": BAD}, "version": 1}
MODEL = {"id": BAD, "object": "model", "created": 1, "owned_by": BAD, "parent": BAD}
CHUNK = {"id": BAD, "created": 1, "model": BAD, "choices": [{"index": 0, "delta": {"content": BAD.replace("\n", "")}}]}
VERSION = {
    **{"name": BAD, "version": BAD, "reference": BAD, "filename": BAD, "format": BAD, "columns": [BAD], "owner": BAD},
    **{"rows": 3, "bad": 1, "duplicates": 1, "bytes": 5, "md5": BAD, "sha256": BAD, "commit": BAD, "created_at": WHEN},
    **{"bad_rows": [{"row": 1, "reason": BAD}], "reasons": [{"reason": BAD, "count": 1, "rows": [1]}]},
}
ROWS = [
    {"row": 1, "values": {BAD: [BAD]}, "problem": BAD, "rendered": None},
    {"row": 2, "values": None, "problem": None, "rendered": [{"text": BAD, "supervised": is_it} for is_it in (0, 1)]},
]
SHOWN = [{"name": BAD, "versions": [VERSION]}, {"reference": BAD, "rows": ROWS}]
BASE = {
    **{"name": BAD, "architecture": BAD, "dtype": BAD, "bytes": 5, "path": BAD, "kind": BAD, "owner": BAD},
    "problem": BAD,
}


def spoil(value):
    """A response with BAD in place of all its texts, but for the word that chooses a sentence."""
    if isinstance(value, dict):
        return {key: part if key == "basis" else spoil(part) for key, part in value.items()}
    if isinstance(value, list):
        return [spoil(part) for part in value]
    return BAD if isinstance(value, str) else value


CHAT = Scripted(body=f"data: {json.dumps(CHUNK)}\n\ndata: [DONE]\n\n")
BROKEN = Scripted(body=f"data: {json.dumps({'error': {'message': BAD, 'type': BAD, 'code': BAD}})}\n\n")
COMMANDS = {
    "list": (["list"], [[JOB]]),
    "show": (["show", ID], [JOB]),
    "watch": (["watch", ID], [JOB]),
    "watch one that completes": (["watch", ID], [JOB | {"status": "completed"}]),
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
    "datasets": (["data", "list"], [[VERSION]]),
    "datasets as JSON": (["data", "list", "--json"], [[VERSION]]),
    "an added file": (["data", "add", __file__], [VERSION | {"is_new": True}]),
    "a dataset": (["data", "show", "x"], SHOWN),
    "a dataset for a model": (["data", "show", "x", "--model", "m"], SHOWN),
    "a dataset as JSON": (["data", "show", "x", "--json"], SHOWN),
    "deleted datasets": (["data", "delete", "x"], [{"deleted": [BAD]}]),
    "base models": (["models", "list"], [{"models": [BASE], "root_id": BAD}]),
    "base models as JSON": (["models", "list", "--json"], [{"models": [BASE], "root_id": BAD}]),
    "a base model": (["models", "show", "x"], [BASE]),
    "a plan": (["plan", "--model", "m", "--dataset", "d"], [spoil(Plan.example())]),
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
