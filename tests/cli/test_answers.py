"""`tuneyard chat` and `tuneyard generate` as a user meets them."""

import json
import threading
from urllib.parse import unquote

import pytest
from typer.testing import CliRunner

import cli.__main__ as cli
from api.openai.answer_request import ChatRequest
from tests.client.scripted_service import Scripted, ScriptedService
from tests.client.test_answers import HEAD, make_stream
from tuneyard_cli.answers import Chat, ask_or_tell
from tuneyard_client import Tuneyard
from tuneyard_wire.completions import ChatCompletion, Completion
from tuneyard_wire.jobs import TrainJob

ADAPTER = {"id": "mine@2", "object": "model", "created": 1, "owned_by": "tuneyard", "parent": "org/base"}
BASE = {**ADAPTER, "id": "org/base", "parent": None}


@pytest.fixture
def run(monkeypatch):
    """Runs a command against a service that gives these responses; the result, and what the service was asked."""
    monkeypatch.delenv("TUNEYARD_API_KEY", raising=False)

    def run(arguments, *responses, text=None):
        made = [one if isinstance(one, str | Scripted) else json.dumps(one) for one in responses]
        service = ScriptedService(*(one if isinstance(one, Scripted) else Scripted(body=one) for one in made))
        try:
            result = CliRunner().invoke(cli.main, arguments, env={"TUNEYARD_URL": service.url}, input=text)
        finally:
            service.close()
        return result, service.received

    return run


def test_one_question_is_answered(run):
    result, received = run(
        ["chat", "mine", "Who?", "--system", "Be brief."], ADAPTER, make_stream("The \x1b[31m", "team")
    )
    assert (result.exit_code, result.stdout) == (0, "The \\x1b[31mteam\n")
    body = json.loads(received[1].body)
    assert body["model"] == "mine@2"
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    assert body["temperature"] == 0


def test_the_job_of_a_checkpoint_may_be_named_by_the_beginning_of_its_id(run):
    job = TrainJob.example()
    name = f"{job['job_id'][:6]}:ckpt-step-20"
    result, received = run(["chat", name, "Who?"], [job], ADAPTER, make_stream("The team"))
    assert (result.exit_code, result.stdout) == (0, "The team\n")
    assert unquote(received[1].path) == f"/v1/models/{job['job_id']}:ckpt-step-20"


def test_an_answer_that_is_cut_off_says_so(run):
    last = {**HEAD, "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    stream = make_stream("The team").replace("data: [DONE]", f"data: {json.dumps(last)}\n\ndata: [DONE]")
    result, _ = run(["chat", "mine", "Who?"], ADAPTER, stream)
    assert (result.exit_code, result.stdout) == (0, "The team\n")
    assert "cut off at its maximum of tokens; --max-tokens" in result.stderr
    assert run(["chat", "mine", "Who?"], ADAPTER, make_stream("The team"))[0].stderr == ""


def test_a_conversation_goes_on_after_a_question_that_is_refused(capsys):
    too_long = json.dumps({"error": {"message": "shorten the prompt", "type": "t", "code": "context_length_exceeded"}})
    service = ScriptedService(Scripted(400, too_long), Scripted(body=make_stream("The team")))
    try:
        with Tuneyard(service.url) as client:
            talk = Chat(client, ["mine@2"], None, {})
            ask_or_tell(talk, "Who " * 99)
            ask_or_tell(talk, "Who?")
    finally:
        service.close()
    assert json.loads(service.received[1].body)["messages"] == [{"role": "user", "content": "Who?"}]
    shown = capsys.readouterr()
    assert (shown.out, "shorten the prompt" in shown.err) == ("The team\n", True)


def test_an_empty_system_message_is_one(run):
    _, received = run(["chat", "mine", "Who?", "--system", ""], ADAPTER, make_stream("The team"))
    messages = json.loads(received[1].body)["messages"]
    assert messages == [{"role": "system", "content": ""}, {"role": "user", "content": "Who?"}]


def test_the_base_model_answers_beside_its_adapter(run):
    result, _ = run(["chat", "mine", "Who?", "--base"], ADAPTER, make_stream("Nobody"), make_stream("The team"))
    assert result.stdout == "[org/base]\nNobody\n[mine@2]\nThe team\n"
    result, _ = run(["chat", "mine", "--base", "--json"], ADAPTER, make_stream("A"), make_stream("B"), text="Who?\n")
    assert json.loads(result.stdout) == {"question": "Who?", "answers": {"org/base": "A", "mine@2": "B"}}
    result, received = run(["chat", "org/base", "Who?", "--base"], BASE)
    assert (result.exit_code, len(received)) == (2, 1)


def test_a_question_is_needed(run):
    result, received = run(["chat", "mine"], text="")
    assert (result.exit_code, received) == (2, [])


def test_a_file_is_answered_line_by_line(run, tmp_path):
    file = tmp_path / "prompts.jsonl"
    rows = [{"messages": [{"role": "user", "content": "Who?\u2028\x85"}], "id": 7}]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    result, received = run(
        ["generate", "mine", "--file", str(file), "--max-tokens", "4"], ADAPTER, ChatCompletion.example()
    )
    made = [json.loads(line) for line in result.stdout.splitlines()]
    assert made == [{**rows[0], "answer": "The office opens at eight.", "finish_reason": "stop"}]
    assert json.loads(received[1].body)["model"] == "mine@2"

    file.write_text(json.dumps({"prompt": "The office"}))
    result, received = run(["generate", "mine", "--file", str(file)], ADAPTER, Completion.example())
    assert json.loads(result.stdout)["answer"] == " opens at eight."
    assert received[1].path == "/v1/completions"


def test_an_error_of_the_service_names_the_line(run, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n\n{"prompt": "b"}\n')
    refused = Scripted(400, json.dumps({"error": {"message": "prompt: too long", "type": "t", "code": "too_long"}}))
    result, _ = run(["generate", "mine", "--file", str(file), "--json"], ADAPTER, refused)
    assert result.exit_code == 3
    problem = json.loads(result.stderr)
    assert problem["code"] == "too_long"
    assert f"{file}: line 1: prompt: too long" in result.stderr


def test_a_wait_for_the_first_words_is_explained(run, monkeypatch):
    monkeypatch.setattr("tuneyard_cli.answers.SILENT_SECONDS", 0.01)
    said = threading.Event()
    printed: list[str] = []
    monkeypatch.setattr("tuneyard_cli.answers.print_line", lambda *text: [printed.append(text[0]), said.set()])
    result, _ = run(["chat", "mine", "Who?"], ADAPTER, Scripted(body=make_stream("The team"), wait_for=said))
    assert result.stdout == "The team\n"
    assert printed == ["Waiting for the first words: the service loads a model before its first answer."]


def test_a_line_may_have_tools_and_its_answer_calls(run, tmp_path):
    file = tmp_path / "prompts.jsonl"
    tools = [{"type": "function", "function": {"name": "find_hours"}}]
    row = {"messages": [{"role": "user", "content": "When?"}], "tools": tools}
    file.write_text(json.dumps(row))
    answer = ChatCompletion.example()
    call = {"id": "a1", "type": "function", "function": {"name": "find_hours", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer["choices"][0] |= {"message": message, "finish_reason": "tool_calls"}
    result, received = run(["generate", "mine", "--file", str(file)], ADAPTER, answer)
    assert json.loads(received[1].body)["tools"] == tools
    made = json.loads(result.stdout)
    assert made == {**row, "answer": None, "finish_reason": "tool_calls", "tool_calls": [call]}


def test_a_file_may_begin_with_a_byte_order_mark_and_one_of_another_encoding_is_told(run, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + b'{"prompt": "a"}\r\n')
    result, _ = run(["generate", "mine", "--file", str(file)], ADAPTER, Completion.example())
    assert json.loads(result.stdout)["prompt"] == "a"
    for encoding in ("latin-1", "utf-16"):
        file.write_text('{"prompt": "é"}', encoding=encoding)
        result, received = run(["generate", "mine", "--file", str(file)])
        assert (result.exit_code, received) == (2, [])
        assert "is not UTF-8 at byte" in result.stderr


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl.gz", ".JSONL.ZST"])
def test_a_data_file_that_is_no_json_is_told_by_its_name(run, tmp_path, suffix):
    file = tmp_path / f"prompts{suffix}"
    file.write_bytes(b"PAR1\xff")
    result, received = run(["generate", "mine", "--file", str(file)])
    assert (result.exit_code, received) == (2, [])
    assert f"must have JSON lines or a JSON list, and ends in {suffix.lower()}; convert it" in " ".join(
        result.stderr.split()
    )


def say(*contents):
    """A chat of a user and an assistant in turn."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(contents)]


CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}],
}


@pytest.mark.parametrize(
    ("row", "asked", "reference"),
    [
        ({"messages": say("Hi", "Yo", "Who?", "I.")}, say("Hi", "Yo", "Who?"), "I."),
        ({"messages": [say("Hi")[0], CALL]}, say("Hi"), None),
        (
            {"messages": [say("Hi")[0], say("", "Yo")[1] | {"weight": 0}, *say("Who?", "I.")]},
            say("Hi", "Yo", "Who?"),
            "I.",
        ),
        (
            {
                "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}],
                "system": "Be brief.",
            },
            [{"role": "system", "content": "Be brief."}, *say("Hi")],
            "Yo",
        ),
        ({"instruction": "Add.", "input": "1 1", "output": "2"}, say("Add.\n1 1"), "2"),
        (
            {"instruction": "More.", "input": "", "output": "3", "history": [["Add.", "2"]], "system": "Be brief."},
            [{"role": "system", "content": "Be brief."}, *say("Add.", "2", "More.")],
            "3",
        ),
        ({"prompt": say("Hi"), "completion": [{"role": "assistant", "content": "Yo"}]}, say("Hi"), "Yo"),
        ({"instruction": "", "input": "1 1", "output": "2"}, say("1 1"), "2"),
        ({"prompt": "Add: 1 1 = 2", "instruction": "Add.", "input": "1 1", "output": "2"}, say("Add.\n1 1"), "2"),
        ({"prompt": "Hi", "prompt_id": "a", "messages": say("Hi", "Yo")}, say("Hi"), "Yo"),
        ({"messages": [], "conversations": say("Hi", "Yo")}, say("Hi"), "Yo"),
        (
            {"messages": [{"role": "developer", "content": "Be long."}, *say("Hi", "Yo")], "system": "Be brief."},
            [{"role": "developer", "content": "Be long."}, *say("Hi")],
            "Yo",
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi", "role": None, "content": None, "tool_calls": None},
                    {"from": "gpt", "value": "Yo", "loss": False, "train": False},
                    *say("Who?", "I."),
                ]
            },
            say("Hi", "Yo", "Who?"),
            "I.",
        ),
        ({"prompt": "The office", "completion": " opens."}, "The office", " opens."),
    ],
)
def test_the_last_answer_of_a_training_row_is_not_asked_and_kept_beside_the_new_one(
    run, tmp_path, row, asked, reference
):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(row))
    answer = (Completion if isinstance(asked, str) else ChatCompletion).example()
    result, received = run(["generate", "mine", "--file", str(file)], ADAPTER, answer)
    sent = json.loads(received[1].body)
    assert sent.get("messages", sent.get("prompt")) == asked
    made = json.loads(result.stdout)
    assert made == {**row, "reference": reference, "answer": made["answer"], "finish_reason": made["finish_reason"]}
    assert result.stderr == "1 of 1 rows end with an answer, which is left out of the prompt and kept as `reference`.\n"


def call(name, arguments):
    """A call in OpenAI's form, without its id."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CALLED = [
    say("Hi")[0],
    {"role": "assistant", "tool_calls": [{"id": "call00000", **call("f", '{"a": "é"}')}]},
    {"role": "tool", "content": "5", "tool_call_id": "call00000"},
]
PAIR = [call("f", "{}") | {"id": "x"}, call("g", "{}") | {"id": "call00001"}]


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        (
            {
                "conversations": [
                    {"from": "human", "value": "Hi"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"a": "é"}}'},
                    {"from": "observation", "value": "5"},
                    {"from": "gpt", "value": "Yo"},
                ]
            },
            CALLED,
        ),
        (
            {
                "messages": [
                    say("Hi")[0],
                    {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"a": "é"}'}},
                    {"role": "function", "content": "5"},
                    say("", "Yo")[1],
                ]
            },
            CALLED,
        ),
        ({"messages": json.dumps([*CALLED, say("", "Yo")[1]])}, CALLED),
        (
            {
                "messages": [
                    say("Hi")[0],
                    {"role": "assistant", "content": "", "tool_calls": [PAIR[0], {"name": "g", "parameters": {}}]},
                    {"role": "tool", "content": "1", "name": "g", "tool_call_id": "call00001"},
                    {"role": "tool", "content": "2"},
                ]
            },
            [
                say("Hi")[0],
                {"role": "assistant", "content": "", "tool_calls": PAIR},
                {"role": "tool", "content": "1", "name": "g", "tool_call_id": "call00001"},
                {"role": "tool", "content": "2", "tool_call_id": "x"},
            ],
        ),
        (
            {"conversations": [{"from": "human", "value": "Hi"}, {"from": "function_call", "value": '{"name": "f"}'}]},
            say("Hi"),
        ),
        (  # ids in both columns of a chat are different ones
            {
                "prompt": CALLED,
                "completion": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "g"}}]},
                    {"role": "tool", "content": "6"},
                    say("", "Yo")[1],
                ],
            },
            [
                *CALLED,
                {"role": "assistant", "tool_calls": PAIR[1:]},
                {"role": "tool", "content": "6", "tool_call_id": "call00001"},
            ],
        ),
        ({"instruction": "Who?", "output": "I.", "history": '[["Hi", "Yo"]]'}, say("Hi", "Yo", "Who?")),
    ],
)
def test_calls_and_cells_of_training_rows_are_asked_in_the_form_of_requests(run, tmp_path, row, asked):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps(row))
    result, received = run(["generate", "mine", "--file", str(file)], ADAPTER, ChatCompletion.example())
    body = json.loads(received[1].body)
    assert body["messages"] == asked
    assert ChatRequest.model_validate(body)  # the service takes it
    assert json.loads(result.stdout).items() >= row.items()


def test_a_call_that_is_no_json_is_left_to_the_service(run, tmp_path):
    file = tmp_path / "prompts.jsonl"
    messages = [*say("Hi"), {"role": "function_call", "content": "{"}, *say("Who?")]
    file.write_text(json.dumps({"messages": messages}))
    _, received = run(["generate", "mine", "--file", str(file)], ADAPTER, ChatCompletion.example())
    assert json.loads(received[1].body)["messages"] == messages


FUNCTION = {"name": "f", "description": "Finds."}
TOOL = {"type": "function", "function": FUNCTION}


@pytest.mark.parametrize(
    ("fields", "tools"),
    [
        ({"tools": json.dumps([TOOL])}, [TOOL]),
        ({"tools": [{"type": "function", **FUNCTION}]}, [TOOL]),
        ({"tools": "", "functions": [FUNCTION]}, [TOOL]),
        ({"tools": []}, None),
        ({"tools": " "}, None),
        ({"tools": "[]", "functions": None}, None),
    ],
)
def test_the_functions_of_a_training_row_are_offered(run, tmp_path, fields, tools):
    file = tmp_path / "prompts.jsonl"
    row = {"messages": say("Hi", "Yo"), **fields}
    file.write_text(json.dumps(row))
    result, received = run(["generate", "mine", "--file", str(file)], ADAPTER, ChatCompletion.example())
    assert json.loads(received[1].body).get("tools") == tools
    assert json.loads(result.stdout).items() >= row.items()


@pytest.mark.parametrize(
    "row",
    [{"messages": say("Hi")}, {"prompt": say("Hi")}, {"instruction": "Hi", "output": ""}, {"instruction": "Hi"}],
)
def test_a_row_without_an_answer_has_no_reference_of_ours(run, tmp_path, row):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({**row, "reference": 5}))
    result, received = run(["generate", "mine", "--file", str(file)], ADAPTER, ChatCompletion.example())
    assert json.loads(received[1].body)["messages"] == say("Hi")
    assert (json.loads(result.stdout)["reference"], result.stderr) == (5, "")


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        '{"prompt": 3}',
        '{"prompt": ""}',
        '{"prompt": "a", "answer": "b"}',
        '{"prompt": "a", "messages": []}',
        '{"prompt": "a", "tools": []}',
        '{"messages": [5]}',
        '{"messages": [{"role": "assistant", "content": "a"}]}',
        '{"messages": [{"role": "user"}, {"role": "assistant"}], "reference": 1}',
        '{"conversations": "a"}',
        '{"instruction": ""}',
        '{"instruction": "a", "output": 3}',
        '{"instruction": "a", "history": ["b"]}',
        '{"prompt": [{"role": "user"}], "completion": "a"}',
        '{"text": "a"}',
        '{"input": "a", "output": "b"}',
        '{"messages": [{"role": "user", "content": "a"}], "tools": "[}"}',
        '{"messages": [{"role": "user", "content": "a"}], "tools": {"name": "f"}}',
        '{"prompt": "a", "prompt": "b"}',
        '{"prompt": "a", "value": NaN}',
        '{"prompt": "a", "value": ' + "[" * 100_000,
        "",
    ],
)
def test_a_file_with_another_line_is_refused_before_anything_is_asked(run, tmp_path, line):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n' * bool(line) + line)
    result, received = run(["generate", "mine", "--file", str(file)])
    assert (result.exit_code, received) == (2, [])
    assert ("line 2" in result.stderr) == bool(line)


def test_a_list_is_answered_row_by_row_as_lines(run, tmp_path):
    rows = [{"instruction": "One?", "output": "1"}, {"messages": [{"role": "user", "content": "2"}]}]
    listed, lines = tmp_path / "rows.json", tmp_path / "rows.jsonl"
    listed.write_text(f"\ufeff\n{json.dumps(rows, indent=2)}\n", encoding="utf-8")
    lines.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    answers = [ChatCompletion.example()] * 2
    found, wanted = (run(["generate", "mine", "--file", str(file)], ADAPTER, *answers)[0] for file in (listed, lines))
    assert (found.exit_code, found.stdout) == (0, wanted.stdout)
    assert [json.loads(line).get("reference") for line in found.stdout.splitlines()] == ["1", None]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"prompt": "a"}, 5]', "row 2"),
        ('[{"prompt": "a"}, {"instruction": ""}]', "row 2"),
        ('[{"prompt": "a"},', "is not JSON"),
        ('[{"prompt": "a"}] []', "is not JSON"),
        ("[]", "has no lines"),
    ],
)
def test_a_list_with_another_row_is_refused_before_anything_is_asked(run, tmp_path, text, words):
    file = tmp_path / "prompts.json"
    file.write_text(text)
    result, received = run(["generate", "mine", "--file", str(file)])
    assert (result.exit_code, received) == (2, [])
    assert f"--file {file}" in result.stderr.replace("\n", "")
    assert words in result.stderr
