"""What a model writes, and what it is called, stays within the line of its event, and is shown without harm."""

import json
import shutil
from collections.abc import Iterator

import httpx
import openai
import pytest
from typer.testing import CliRunner

import cli.__main__ as cli
from jobs.settings import Settings
from tests.api.openai_client import connected
from tests.calling_model import QUESTION, TOOLS, save_model_that_says, write_call
from tuneyard_cli.output import escape_lines

pytestmark = [
    pytest.mark.stack,
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]

END = "\r\n\r\ndata: [DONE]\n\n"  # of a stream, if it stood in one as it is
TEXT = f"a{END}\x1b[2J\u2028\x85\u202e\x00<script>"
NAME = "find\u2028\u202e\x7fhours"
ARGUMENTS = {"place": f"{END}\u2028", "\x1b]0;x\x07": True}
MODEL = "org/a\u2028\x1b[2J\rdata: [DONE]"
BODY = {"model": MODEL, "messages": [QUESTION], "tools": TOOLS, "temperature": 0, "max_tokens": 300}


@pytest.fixture(scope="module")
def client(stack: Settings) -> Iterator[openai.OpenAI]:
    answer = f"{TEXT}<tool_call>{write_call(NAME, ARGUMENTS)}</tool_call>"
    folder = save_model_that_says(stack.model_root / MODEL, [([QUESTION], answer)])
    try:
        with connected(stack.model_copy(update={"dtype": "none"})) as client:
            yield client
    finally:
        shutil.rmtree(folder)


def test_openais_client_reads_it_as_it_was_written(client):
    whole = client.chat.completions.create(**BODY)
    with client.chat.completions.create(stream=True, **BODY) as stream:
        chunks = [*stream]
    (call,) = whole.choices[0].message.tool_calls
    assert (whole.model, whole.choices[0].message.content, call.function.name) == (MODEL, TEXT, NAME)
    assert json.loads(call.function.arguments) == ARGUMENTS
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    (streamed,) = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert (streamed.function.name, streamed.function.arguments) == (NAME, call.function.arguments)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == "tool_calls"


def test_each_event_is_one_line_of_ascii(client):
    url = f"{client.base_url}chat/completions"
    events = httpx.post(url, json=BODY | {"stream": True}, timeout=120).content.split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    for event in events[:-2]:
        assert event.startswith(b"data: {")
        assert event.decode("ascii").isprintable()
        assert json.loads(event.removeprefix(b"data: "))["model"] == MODEL


def test_the_command_line_escapes_it(client, tmp_path, monkeypatch):
    monkeypatch.delenv("TUNEYARD_API_KEY", raising=False)
    url = str(client.base_url).removesuffix("/v1/")
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"messages": [QUESTION], "tools": TOOLS}))
    commands = (
        ["chat", MODEL, QUESTION["content"], "--max-tokens", "20"],
        ["chat", MODEL, QUESTION["content"], "--max-tokens", "20", "--json"],
        ["generate", MODEL, "--file", str(file), "--max-tokens", "300"],
        ["chat", f"{MODEL}x", "Hello"],
    )
    results = [CliRunner().invoke(cli.main, command, env={"TUNEYARD_URL": url}) for command in commands]
    assert [result.exit_code == 0 for result in results] == [True, True, True, False]
    for result in results:
        printed = result.stdout + result.stderr
        assert printed.strip()
        assert escape_lines(printed) == printed
    assert json.loads(results[2].stdout)["tool_calls"][0]["function"]["name"] == NAME
