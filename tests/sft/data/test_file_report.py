"""What the check of a file says of it: format, rows, bad rows with reasons, duplicates."""

import json
from pathlib import Path

import pytest

from sft.data.file_report import inspect_file
from sft.errors import InvalidDataset

ALPACA = {"instruction": "Say hello.", "output": "Hello."}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}


def write(folder: Path, *rows: object, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_bad_rows_are_named_by_number_with_their_reason(tmp_path):
    report = inspect_file(write(tmp_path, ALPACA, "[1]", ALPACA, {"instruction": 3}, "not json", "", ALPACA))

    assert (report.rows, report.bad, report.duplicates, report.format) == (6, 3, 2, "alpaca")
    assert report.bad_rows == (
        (2, "must be an object, got [1]"),
        (4, "instruction must be text, got 3"),
        (5, "not JSON: Expecting value at column 1"),
    )
    assert [(one["count"], one["rows"]) for one in report.reasons] == [(1, [2]), (1, [4]), (1, [5])]
    assert report.columns == ("instruction", "output")


def test_half_of_a_surrogate_pair_makes_a_row_bad_wherever_a_template_may_write_it(tmp_path):
    question, answer = CHAT["messages"]
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    bad = [
        {**ALPACA, "output": "Hello\ud83d."},
        {"prompt": "\ud83d", "completion": "b"},
        {"text": "\ud83d"},
        {"messages": [question | {"content": "\ud83d"}, answer]},
        {"messages": [question, answer | {"reasoning_content": "\ud83d"}]},
        {"messages": [question | {"name": "\ud83d"}, answer]},
        {"messages": [question, {"role": "assistant", "tool_calls": [call | {"id": "\ud83d"}]}]},
        {"messages": [question, {"role": "assistant", "tool_calls": [{"function": {"name": "\ud83d"}}]}]},
    ]
    good = [{**ALPACA, "output": "Hello\ud83d\ude00."}, {**ALPACA, "note": "\ud83d"}]  # a whole pair; a column not read
    report = inspect_file(write(tmp_path, *good, *bad))

    reason = "has half of a surrogate pair, '\\ud83d', which is not text"
    assert report.bad_rows == tuple((number, reason) for number in range(3, 11))


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([ALPACA], "alpaca"),
        ([CHAT], "chat"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}], "completion"),
        ([ALPACA, CHAT], "auto"),
        ([{"body": "a text in a column of another name"}], None),
    ],
)
def test_the_format_is_found(tmp_path, rows, found):
    assert inspect_file(write(tmp_path, *rows)).format == found


def test_equal_rows_count_as_duplicates_whatever_the_order_of_their_keys(tmp_path):
    turned = json.dumps({"output": "Hello.", "instruction": "Say hello."})
    assert inspect_file(write(tmp_path, ALPACA, turned, {**ALPACA, "output": "Hi."})).duplicates == 1


@pytest.mark.parametrize("rows", [[], ["x"], ["[1]", "[2]"]])
def test_a_file_without_any_row_to_read_is_refused(tmp_path, rows):
    with pytest.raises(InvalidDataset, match="has no row"):
        inspect_file(write(tmp_path, *rows))


def test_what_is_kept_of_bad_rows_does_not_grow_with_them(tmp_path):
    report = inspect_file(write(tmp_path, ALPACA, *({"instruction": number} for number in range(1000))))

    assert (report.bad, len(report.bad_rows), len(report.reasons)) == (1000, 20, 20)


def test_csv_and_compressed_files_are_read(tmp_path):
    import gzip

    table = tmp_path / "data.csv"
    table.write_text("instruction,output\na,b\na,b\n", encoding="utf-8")
    packed = tmp_path / "data.jsonl.gz"
    packed.write_bytes(gzip.compress(f"{json.dumps(ALPACA)}\n".encode()))

    assert (inspect_file(table).rows, inspect_file(table).duplicates) == (2, 1)
    assert inspect_file(packed).format == "alpaca"
