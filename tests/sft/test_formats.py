import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.errors import InvalidDataset
from sft.formats import Conversation, PlainText, detect_format, read_row, read_rows

ROWS = [{"instruction": "Hi", "output": "Yo"}, {"instruction": "Zürich?", "output": "Ja\nja"}]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_file_kind_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8-sig")
    elif suffix == ".jsonl":
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    elif suffix == ".csv":
        path.write_text('instruction,output\nHi,Yo\nZürich?,"Ja\nja"\n', encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert read_rows(path) == ROWS


def test_json_file_with_an_object_a_line_is_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    assert read_rows(path) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl line 2: Expecting value"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a.jsonl line 2 must be an object, got \[1\]"),
        ("a.json", '[{"a": 1},\n {"a" 2}]', "a.json line 2: Expecting ':' delimiter"),
        ("a.json", '{"rows": []}', "a.json must hold a list of rows, got dict"),
        ("a.json", "[1]", "a.json row 1 must be an object, got 1"),
        ("a.json", "[]", "a.json has no rows"),
        ("a.csv", "a,b\n1,2\n1\n", "a.csv line 3 must have 2 cells"),
        ("a.csv", "a,b\n1,2,3\n", "a.csv line 2 must have 2 cells"),
        ("a.parquet", "nonsense", "a.parquet is not a Parquet file"),
        ("a.txt", "nonsense", "a.txt must be one of .json, .jsonl, .csv, .parquet, got .txt"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(InvalidDataset, match=message):
        read_rows(tmp_path / name)


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(InvalidDataset, match=r"a\.jsonl must be UTF-8"):
        read_rows(tmp_path / "a.jsonl")


def test_alpaca_row_becomes_a_conversation() -> None:
    row = {
        "instruction": "Add.",
        "input": "1 2",
        "output": "3",
        "system": "Be terse.",
        "history": [["Hi", "Yo"]],
    }
    assert read_row(row, 1, "alpaca") == Conversation(
        [
            {"role": "system", "content": "Be terse."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Yo"},
            {"role": "user", "content": "Add.\n1 2"},
            {"role": "assistant", "content": "3"},
        ]
    )


def test_alpaca_row_without_input_has_no_empty_line() -> None:
    row = {"instruction": "Hi", "input": "", "output": "Yo", "history": None, "system": None}
    assert read_row(row, 1, "alpaca").messages == [  # type: ignore[union-attr]
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
    assert read_row(row, 1, "chat") == expected
    assert read_row(row, 1, "auto") == expected


def test_completion_rows() -> None:
    assert read_row({"text": "abc"}, 1, "completion") == PlainText("", "abc")
    assert read_row({"body": "abc"}, 1, "completion", "body") == PlainText("", "abc")
    assert read_row({"body": "abc"}, 1, "auto", "body") == PlainText("", "abc")
    assert read_row({"prompt": "a", "completion": "b"}, 1, "completion") == PlainText("a", "b")
    question, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}
    row = {"prompt": [question, answer, question], "completion": [answer]}
    assert read_row(row, 1, "completion") == Conversation([question, answer, question, answer], supervised_from=3)


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
        ({"question": "a"}, "alpaca", "row 7: alpaca needs a column instruction; columns are question"),
        ({"instruction": "a", "answer": "b"}, "alpaca", "row 7: alpaca needs a column output; columns are instruction"),
        ({"instruction": "a", "output": 3}, "alpaca", "row 7: output must be text, got 3"),
        ({"instruction": "a", "output": "b", "history": ["x"]}, "alpaca", "row 7: history must hold pairs"),
        ({"text": "a"}, "chat", "row 7: chat needs a column messages or conversations; columns are text"),
        ({"messages": "a"}, "chat", "row 7: messages must be a list of messages, got 'a'"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "chat", r"row 7: messages\[0\] has the role 'bot'; known"),
        ({"messages": [{"role": "user"}]}, "chat", r"row 7: messages\[0\] must have text as its content, got None"),
        ({"body": "a"}, "completion", "row 7: completion needs a column text; columns are body"),
        ({"body": "a"}, "auto", "row 7: dataset_format auto knows alpaca .* columns are body"),
    ],
)
def test_a_row_of_another_shape_is_named(row: dict[str, object], dataset_format: str, message: str) -> None:
    with pytest.raises(InvalidDataset, match=message):
        read_row(row, 7, dataset_format)
