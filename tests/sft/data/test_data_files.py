import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.data.data_files import count_rows, read_rows
from sft.data.file_content import RECODE
from sft.data.rows import BrokenRow
from sft.errors import InvalidDataset

ROWS = [{"instruction": "Hi", "output": "Yo"}, {"instruction": "Zürich?", "output": "Ja\nja"}]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_file_kind_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(ROWS), encoding="utf-8-sig")
    elif suffix == ".jsonl":
        path.write_text("\r\n".join(json.dumps(row) for row in ROWS), encoding="utf-8-sig")
    elif suffix == ".csv":
        path.write_text('instruction,output\nHi,Yo\n\nZürich?,"Ja\nja"\n', encoding="utf-8-sig")
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert read_rows(path) == [(1, ROWS[0]), (2, ROWS[1])]


def test_json_file_with_an_object_a_line_is_read_as_such(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    assert read_rows(path) == [(1, ROWS[0]), (2, ROWS[1])]


def test_lines_of_a_jsonl_file_stand_alone_under_their_line_number(tmp_path: Path) -> None:
    lines = [
        b'{"a": 1}',
        b"",
        b'{"a": ',
        b"[1]",
        b'{"a": "\xff"}',
        b"[" * 100_000,
        b'{"a": ' + b"1" * 5000 + b"}",
        b"null",
        b'{"a": 2}',
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    rows = read_rows(tmp_path / "a.jsonl")
    assert [number for number, _ in rows] == [1, 3, 4, 5, 6, 7, 8, 9]
    assert (rows[0], rows[-1]) == ((1, {"a": 1}), (9, {"a": 2}))
    broken = {number: row for number, row in rows if isinstance(row, BrokenRow)}
    assert broken[3] == BrokenRow('{"a": ', "not JSON: Expecting value at column 7")
    assert broken[4] == BrokenRow("[1]", "must be an object, got [1]")
    assert broken[5].reason.startswith("not UTF-8: invalid start byte at byte 8; if the file is in Windows-1252")
    assert broken[6].reason.startswith("not JSON: maximum recursion depth exceeded")
    assert broken[7].reason.startswith("not JSON: Exceeds the limit")
    assert broken[8].reason == "must be an object, got None"


def test_lines_of_a_csv_file_stand_alone_under_their_record_number(tmp_path: Path) -> None:
    long = "x" * 200_000
    content = f'a,b\n1,2\n1\n1,2,3\n"x"y,2\n"three\nlines\nlong",2\n{long},2\n1,\\xff\n3,"4\n'
    (tmp_path / "a.csv").write_bytes(content.encode().replace(b"\\xff", b"\xff"))
    rows = dict(read_rows(tmp_path / "a.csv"))
    assert [rows[number] for number in (1, 5, 6)] == [
        {"a": "1", "b": "2"},
        {"a": "three\nlines\nlong", "b": "2"},
        {"a": long, "b": "2"},
    ]
    reasons = {number: row.reason for number, row in rows.items() if isinstance(row, BrokenRow)}
    assert reasons == {
        2: "line 3: must have 2 cells as the header has, got 1",
        3: "line 4: must have 2 cells as the header has, got 3",
        4: "line 5: ',' expected after '\"'",
        7: f"line 10: not UTF-8; {RECODE}",
        8: "line 11: unexpected end of data",
    }


def test_a_list_keeps_the_numbers_of_its_rows(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"a": 1}, 2, {"a": 3}]', encoding="utf-8")
    assert read_rows(tmp_path / "a.json") == [
        (1, {"a": 1}),
        (2, BrokenRow("2", "must be an object, got 2")),
        (3, {"a": 3}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"a": 1},\n {"a" 2}]', "a.json line 2: Expecting ':' delimiter"),
        (
            "a.json",
            b'{"rows": []}',
            "a.json must hold a list of rows, or an object a line, got one object",
        ),
        ("a.json", b"[]", "a.json has no rows"),
        ("a.json", b'["\xff"]', "a.json is not UTF-8: invalid start byte at byte 3; if the file is in Windows"),
        ("a.json", b"[" * 100_000, "a.json can't be read as JSON: maximum recursion"),
        ("a.jsonl", b"\n\n", "a.jsonl has no rows"),
        ("a.csv", b"a,b\n", "a.csv has no rows"),
        ("a.csv", b"", "a.csv has no rows"),
        ("a.parquet", b"nonsense", "a.parquet is not a Parquet file"),
        ("a.txt", b"nonsense", "a.txt must be one of .json, .jsonl, .csv, .parquet, .jsonl.gz, .jsonl.zst, got .txt"),
    ],
)
def test_a_file_that_is_malformed_as_a_whole_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidDataset, match=message):
        read_rows(tmp_path / name)
    with pytest.raises(InvalidDataset, match=r"missing\.jsonl is not a file"):
        read_rows(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    "content",
    [
        b'{"text": "a"}\r{"text": "b"}\r\r{"text": "c"}\r',
        b'\n\r\n{"text": "a"}\r\n{"text": "b"}\n',
        b'\n[\n {"text": "a"},\n {"text": "b"}\n]',
        b'\xef\xbb\xbf\n[\n {"text": "a"},\n {"text": "b"}\n]',
    ],
)
def test_rows_are_counted_as_they_are_read_whatever_ends_a_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert count_rows(path) == len(read_rows(path))
