"""JSON lists are read value by value; where the pieces of the file end does not matter."""

import json
from pathlib import Path
from typing import Any

import pytest

from sft.data import data_stream, json_rows
from sft.data.data_files import count_rows, read_rows
from sft.data.rows import BrokenRow
from sft.errors import InvalidDataset

ROWS: list[Any] = [
    {"text": 'é"\\ \u2028 𝄞 \n\t', "n": [1, -2.5e-07, 12345678901234567890.125, None, True, []]},
    {"text": "", "nested": {"a": [{"b": {}}, [[]]]}},
    12.5,
    {"text": "x" * 300},
    "text",
    [],
    {"n": -0.0},
]


def expect(rows: list[Any]) -> list[Any]:
    return [
        (number, row if isinstance(row, dict) else BrokenRow(repr(row), f"must be an object, got {row!r}"))
        for number, row in enumerate(rows, 1)
    ]


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 10**6])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("is_ascii", [True, False])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16-le"])
def test_a_list_gives_the_values_that_json_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int, indent: int | None, is_ascii: bool, encoding: str
) -> None:
    text = json.dumps(ROWS, indent=indent, ensure_ascii=is_ascii)
    monkeypatch.setattr(data_stream, "BLOCK_BYTES", 4 * piece if encoding == "utf-16-le" else max(piece, 4))
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_bytes(f"{text}\n".encode(encoding))
        assert read_rows(tmp_path / name) == expect(ROWS)
        assert count_rows(tmp_path / name) == len(ROWS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[\n{"a": 1},\n{"a": tru}]', "line 3: Expecting value"),
        (b'[\n{"a": 1}\n{"a": 2}]', "line 3: Expecting ',' delimiter"),
        (b'[\n{"a": "b', "line 2: Unterminated string starting at"),
        (b'[{"a": 1},\n', "line 2: Expecting value"),
        (b'[{"a": 1}\n\n', "line 3: Expecting ',' delimiter"),
        (b'[{"a": 1}]\n{"a": 2}', "line 2: Extra data"),
        (b'{"a": 1} {"a": 2}', "line 1: Extra data"),
        (b'[{"a": "\\u00"}]', "line 1: Invalid \\uXXXX escape"),
        (b'[{"a": 1, "a": 2}]', "can't be read as JSON: an object has the key 'a' more than once"),
        (b'["' + "é".encode() * 30 + b'\xff"]', "is not UTF-8: invalid start byte at byte 63"),
        (b'["' + "é".encode() * 30 + b"\xc3", "is not UTF-8: unexpected end of data at byte 63"),
        (b'\n{"rows": []}', "must hold a list of rows, or an object a line, got one object with ['rows']"),
        (b"12\n", "must hold a list of rows, or an object a line, got int"),
    ],
)
@pytest.mark.parametrize("piece", [4, 5, 11, 10**6])
def test_damage_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str, piece: int
) -> None:
    monkeypatch.setattr(data_stream, "BLOCK_BYTES", piece)
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InvalidDataset) as caught:
        read_rows(tmp_path / "a.json")
    assert str(caught.value) == f"a.json {message}" or str(caught.value).startswith(f"a.json {message}; if the file")


def test_lines_with_another_suffix_stand_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_stream, "BLOCK_BYTES", 10)
    (tmp_path / "a.json").write_bytes(b'\n{"a": 1}\n{"a": "\xff"}\n\n{"a": \n{"a": 2}\n')
    rows = dict(read_rows(tmp_path / "a.json"))
    assert [number for number, row in rows.items() if isinstance(row, BrokenRow)] == [3, 5]
    assert (rows[2], rows[6]) == ({"a": 1}, {"a": 2})
    (tmp_path / "a.jsonl").write_bytes(b'[{"a": 1},\n{"a": 2}\n{"a": 3}\n')  # no list as a whole
    rows = dict(read_rows(tmp_path / "a.jsonl"))
    assert isinstance(rows[1], BrokenRow)
    assert (rows[2], rows[3]) == ({"a": 2}, {"a": 3})


def test_a_value_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_LINE_BYTES", 2**20)
    monkeypatch.setattr(data_stream, "BLOCK_BYTES", 1000)
    (tmp_path / "a.json").write_text('[{"a": "' + "x" * 10**7)
    with pytest.raises(InvalidDataset, match=r"^a\.json has a value of more than 1 MiB, which is no row"):
        count_rows(tmp_path / "a.json")
