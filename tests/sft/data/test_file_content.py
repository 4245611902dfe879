"""Files as people have them: other encodings, other delimiters, pointers and archives in place of the data."""

import bz2
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.data.data_files import count_rows, read_rows
from sft.data.rows import BrokenRow
from sft.data.splits import split_rows
from sft.errors import InvalidDataset

ROW = {"instruction": "Grüße\u2028?", "output": "Ja, 😀."}
TEXT = json.dumps(ROW, ensure_ascii=False)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 2690\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", f"[{TEXT}]"),
        ("a.jsonl", TEXT + "\r\n\r\n"),
        ("a.csv", 'instruction,output\nGrüße\u2028?,"Ja, 😀."\n'),
    ],
)
def test_unicode_is_read_whatever_its_encoding(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_rows(tmp_path / name) == [(1, ROW)]
    assert count_rows(tmp_path / name) == 1


@pytest.mark.parametrize("encoding", ["latin-1", "windows-1252", "gb18030"])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
def test_other_encodings_are_named_with_what_to_do(tmp_path: Path, suffix: str, encoding: str) -> None:
    path = tmp_path / f"a{suffix}"
    value = "Grüße"
    text = (
        f"a\n{value}\n" if suffix == ".csv" else f'[{{"a": "{value}"}}]' if suffix == ".json" else f'{{"a": "{value}"}}'
    )
    path.write_bytes(text.encode(encoding))
    try:
        [(_, row)] = read_rows(path)
        assert isinstance(row, BrokenRow)
        told = row.reason
    except InvalidDataset as error:
        told = str(error)
    assert "not UTF-8" in told
    assert "Windows-1252, Latin-1 or GB18030, convert it with `iconv" in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a Git LFS pointer, not the data; run `git lfs pull`"),
        (gzip.compress(TEXT.encode(), mtime=0), "is compressed with gzip; unpack it with gunzip"),
        (bz2.compress(TEXT.encode()), "is compressed with bzip2"),
        (lzma.compress(TEXT.encode()), "is compressed with xz"),
        (b"\x28\xb5\x2f\xfd\x04\x00", "is compressed with Zstandard; unpack it with `zstd -d`"),
        (b"PK\x03\x04 ...", "is a ZIP archive or an Excel file"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page"),
        (b"\n<HTML>", "is a web page"),
        (b"\0" * 4096, "begins with NUL bytes, as a torn download does"),
        (b"/annex/objects/SHA256E-s1--ab.jsonl\n", "is a git-annex pointer"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_what_is_not_the_data_is_called_by_its_name(tmp_path: Path, suffix: str, content: bytes, message: str) -> None:
    path = tmp_path / f"train{suffix}"
    path.write_bytes(content)
    for read in (read_rows, count_rows):
        with pytest.raises(InvalidDataset, match=message):
            read(path)


def test_a_compressed_file_under_its_own_suffix_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(TEXT.encode()))
    (tmp_path / "a.jsonl.br").write_bytes(b"\x0b\x02\x80")
    with pytest.raises(InvalidDataset, match=r"a\.csv\.gz is compressed with gzip"):
        read_rows(tmp_path / "a.csv.gz")
    with pytest.raises(InvalidDataset, match=r"a\.jsonl\.br is an archive by its name; unpack it first"):
        read_rows(tmp_path / "a.jsonl.br")


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_cells_may_be_separated_as_spreadsheets_do(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a.csv").write_text(f"instruction{mark}output\n1, 2{mark}3\n", encoding="utf-8")
    assert read_rows(tmp_path / "a.csv") == [(1, {"instruction": "1, 2", "output": "3"})]


def test_a_list_under_jsonl_is_read_as_json(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f"[\n{TEXT},\n{TEXT}]", encoding="utf-8")
    assert read_rows(tmp_path / "a.jsonl") == [(1, ROW), (2, ROW)]
    assert count_rows(tmp_path / "a.jsonl") == 2


def test_a_key_that_is_there_twice_is_told(tmp_path: Path) -> None:
    twice = '{"output": "a", "meta": {"output": 1, "output": 2}}'
    (tmp_path / "a.jsonl").write_text(f"{TEXT}\n{twice}\n", encoding="utf-8")
    assert read_rows(tmp_path / "a.jsonl")[1] == (
        2,
        BrokenRow(twice, "not JSON: an object has the key 'output' more than once"),
    )
    (tmp_path / "a.json").write_text(f"[{twice}]", encoding="utf-8")
    with pytest.raises(InvalidDataset, match="an object has the key 'output' more than once"):
        read_rows(tmp_path / "a.json")
    (tmp_path / "a.csv").write_text("instruction,output,output\na,b,c\n", encoding="utf-8")
    with pytest.raises(InvalidDataset, match="has the column 'output' more than once; rename one"):
        read_rows(tmp_path / "a.csv")


def test_rows_nested_as_deep_as_can_be_read_can_be_split() -> None:
    deep: Any = "x"
    for _ in range(5000):
        deep = [deep]
    rows = [(1, {"instruction": "a", "deep": deep}), (2, {"instruction": "b"})]
    assert split_rows(rows, 0.0, max_samples=1)[0]


def test_parquet_gives_the_rows_of_jsonl(tmp_path: Path) -> None:
    """Arrow gives every object of a column the keys of all, null where they were not."""

    def tool(name: str, **properties: Any) -> dict[str, Any]:
        return {"type": "function", "function": {"name": name, "parameters": {"properties": properties}}}

    def call(name: str, **arguments: Any) -> dict[str, Any]:
        return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}

    rows = [
        {"messages": [{"role": "user", "content": "a"}, call("add", a=1)], "tools": [tool("add", a={"type": "int"})]},
        {
            "messages": [{"role": "user", "content": "b"}, call("now", zone="UTC")],
            "tools": [tool("now", zone={"enum": ["UTC"]})],
        },
        {"messages": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    lines, table = read_rows(tmp_path / "a.jsonl"), read_rows(tmp_path / "a.parquet")
    assert lines[:2] == table[:2]
    assert table[2][1] == {**rows[2], "tools": None}
    for side, other in zip(split_rows(lines, 0.4), split_rows(table, 0.4), strict=True):
        assert [number for number, _ in side] == [number for number, _ in other]
