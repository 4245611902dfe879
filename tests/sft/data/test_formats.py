import pytest

from sft.data.formats import Conversation, PlainText, detect_format, read_row
from sft.errors import InvalidDataset


def test_alpaca_row_becomes_a_conversation() -> None:
    row = {
        "instruction": "Add.",
        "input": "1 2",
        "output": "3",
        "system": "Be terse.",
        "history": [["Hi", "Yo"]],
    }
    assert read_row(row, "alpaca") == Conversation(
        [
            {"role": "system", "content": "Be terse."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yo"},
            {"role": "user", "content": "Add.\n1 2"},
            {"role": "assistant", "content": "3"},
        ]
    )


def test_history_may_be_a_text_cell() -> None:
    row = {"instruction": "Bye", "output": "So", "history": '[["Hi", "Yo"]]'}
    assert [message["content"] for message in read_row(row, "alpaca").messages] == ["Hi", "Yo", "Bye", "So"]  # type: ignore[union-attr]
    assert len(read_row(row | {"history": ""}, "alpaca").messages) == 2  # type: ignore[union-attr]


def test_alpaca_row_without_input_has_no_empty_line() -> None:
    row = {"instruction": "Hi", "input": "", "output": "Yo", "history": None, "system": None}
    assert read_row(row, "alpaca").messages == [  # type: ignore[union-attr]
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yo"},
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]},
        {
            "messages": None,
            "conversations": [
                {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
                {"role": "assistant", "content": "Yo"},
            ],
        },
    ],
)
def test_openai_and_sharegpt_messages_are_the_same_conversation(row: dict[str, object]) -> None:
    expected = Conversation([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}])
    assert read_row(row, "chat") == expected
    assert read_row(row, "auto") == expected


def test_completion_rows() -> None:
    assert read_row({"text": "abc"}, "completion") == PlainText("", "abc")
    assert read_row({"body": "abc"}, "completion", "body") == PlainText("", "abc")
    assert read_row({"body": "abc"}, "auto", "body") == PlainText("", "abc")
    assert read_row({"prompt": "a", "completion": "b"}, "completion") == PlainText("a", "b")
    question, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
    row = {"prompt": [question, answer, question], "completion": [answer]}
    assert read_row(row, "completion") == Conversation([question, answer, question, answer], supervised_from=3)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a", "output": "b"}, "alpaca"),
        ({"messages": []}, "chat"),
        ({"conversations": []}, "chat"),
        ({"text": "a"}, "completion"),
        ({"prompt": "a", "completion": "b"}, "completion"),
    ],
)
def test_the_format_is_found_by_the_columns(row: dict[str, object], expected: str) -> None:
    assert detect_format(row) == expected


@pytest.mark.parametrize(
    ("row", "dataset_format", "message"),
    [
        ({"question": "a"}, "alpaca", "alpaca needs a column instruction; columns are question"),
        ({"instruction": "a", "answer": "b"}, "alpaca", "alpaca needs a column output; columns are instruction"),
        ({"instruction": "a", "output": 3}, "alpaca", "output must be text, got 3"),
        ({"instruction": "a", "output": "b", "history": ["xy"]}, "alpaca", "history must hold pairs .*, got 'xy'"),
        ({"instruction": "a", "output": "b", "history": 3}, "alpaca", "history must be a list of pairs .*, got 3"),
        ({"instruction": "a", "output": "b", "history": "x"}, "alpaca", "history must be JSON: .*; got 'x'"),
        ({"text": "a"}, "chat", "chat needs a column messages or conversations; columns are text"),
        ({"messages": "a"}, "chat", "messages must be a list of messages, got 'a'"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "chat", r"messages\[0\] has the role 'bot'; known"),
        ({"messages": [{"role": "user"}]}, "chat", r"messages\[0\] must have text as its content, got None"),
        ({"body": "a"}, "completion", "completion needs a column text; columns are body"),
        ({"body": "a"}, "auto", "dataset_format auto knows alpaca .* columns are body"),
    ],
)
def test_a_row_of_another_shape_is_named(row: dict[str, object], dataset_format: str, message: str) -> None:
    with pytest.raises(InvalidDataset, match=message):
        read_row(row, dataset_format)


def test_prompt_and_completion_may_be_cells_of_json() -> None:
    row = {"prompt": '[{"role": "user", "content": "Hi"}]', "completion": '[{"role": "assistant", "content": "Yo"}]'}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]
    assert read_row(row, "completion") == Conversation(messages, supervised_from=1)
    code = {"prompt": "[{1}]", "completion": '[{"a": 1}]'}
    assert read_row(code, "completion") == PlainText("[{1}]", '[{"a": 1}]')


def test_columns_that_are_not_followed_are_named() -> None:
    row = {"instruction": "a", "output": "b", "id": 0, "text": "a b", "lang": "", "score": None}
    assert read_row(row, "auto").ignored == {"id", "text"}
    assert read_row({"text": "a", "meta": {"x": 1}}, "auto").ignored == {"meta"}
    assert read_row({"prompt": "a", "completion": "b", "text": "c", "label": True}, "auto").ignored == {"text", "label"}


@pytest.mark.parametrize(
    ("row", "dataset_format", "is_followed"),
    [
        ({"body": "a"}, "auto", True),
        ({"body": "a"}, "completion", True),
        ({"instruction": "a", "output": "b"}, "alpaca", False),
        ({"messages": [{"role": "assistant", "content": "b"}]}, "auto", False),
    ],
)
def test_a_text_field_that_a_row_does_not_use_is_named(
    row: dict[str, object], dataset_format: str, is_followed: bool
) -> None:
    assert read_row(row, dataset_format, "body").ignored == (set() if is_followed else {"dataset_text_field 'body'"})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        *[
            ({"prompt": "a", "completion": "b", "label": label}, "label false calls this completion a bad one")
            for label in (False, "False", "false")
        ],
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "chosen and rejected are preference data"),
    ],
)
def test_answers_that_are_called_bad_are_refused(row: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidDataset, match=message):
        read_row(row, "auto")
