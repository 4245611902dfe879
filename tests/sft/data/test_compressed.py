"""JSONL compressed with gzip or Zstandard, and files in parts."""

import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sft.config import SFTConfig
from sft.data import data_stream
from sft.data.data_files import count_rows, read_rows
from sft.data.rows import BrokenRow
from sft.data.tokenization import prepare
from sft.errors import InvalidDataset

MakeConfig = Callable[..., SFTConfig]
ROWS = [{"instruction": f"Say {n}", "output": f"{n} é"} for n in range(50)]
TEXT = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()


def compress_zstandard(content: bytes) -> bytes:
    return bytes(pa.compress(content, "zstd", asbytes=True))


COMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".zst": compress_zstandard}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_compressed_rows_are_those_of_the_file(
    tmp_path: Path, model_path: Path, make_config: MakeConfig, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_stream, "BLOCK_BYTES", 100)
    plain, packed = tmp_path / "a.jsonl", tmp_path / f"a.JSONL{suffix}"
    plain.write_bytes(b"\xef\xbb\xbf" + TEXT)
    half = len(TEXT) // 2
    packed.write_bytes(COMPRESS[suffix](b"\xef\xbb\xbf" + TEXT[:half]) + COMPRESS[suffix](TEXT[half:]))  # as pigz does
    assert read_rows(packed) == read_rows(plain) == list(enumerate(ROWS, 1))
    assert count_rows(packed) == len(ROWS)
    one, other = (prepare(make_config(), model_path, path, tmp_path / "cache") for path in (plain, packed))
    assert one.load_train()[:] == other.load_train()[:]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_that_is_not_what_it_says_is_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](os.urandom(5000))[:-2000])
    with pytest.raises(InvalidDataset, match=rf"a\.jsonl\{suffix} can't be unpacked \(.*\); compress it again"):
        read_rows(path)
    path.write_bytes(COMPRESS[suffix](b"\0" * 1000))
    with pytest.raises(InvalidDataset, match=r"begins with NUL bytes"):
        read_rows(path)
    path.write_bytes(COMPRESS[suffix](COMPRESS[".gz"](TEXT)))
    with pytest.raises(InvalidDataset, match=r"is compressed with gzip"):
        read_rows(path)
    path.write_bytes(TEXT)
    with pytest.raises(InvalidDataset, match=rf"is not compressed as its name says; take {suffix} away if it is text"):
        read_rows(path)
    path.write_bytes(COMPRESS[suffix](TEXT + b"[1]\n{"))
    assert [isinstance(row, BrokenRow) for _, row in read_rows(path)][-3:] == [False, True, True]


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("content", [b"{" + b" " * 2**28, b'{"text": "a"}\n' * 2**24], ids=["line", "rows"])
def test_a_file_that_unpacks_without_end_is_refused_in_little_memory(
    tmp_path: Path, suffix: str, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_stream, "FREE_BYTES", 2**22)
    monkeypatch.setattr(data_stream, "MOST_EXPANSION", 4)
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](content))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidDataset, match=r"unpacks to more than 4 times its size, which text does not"):
            count_rows(path)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_the_rows_of_all_parts_are_numbered_through(tmp_path: Path, model_path: Path, make_config: MakeConfig) -> None:
    whole = tmp_path / "whole.jsonl"
    whole.write_bytes(TEXT)
    (tmp_path / "a-00000-of-00003.jsonl").write_bytes(b"".join(TEXT.splitlines(keepends=True)[:20])[:-1])
    (tmp_path / "a-00001-of-00003.jsonl").write_bytes(b"")
    (tmp_path / "a-00002-of-00003.jsonl").write_bytes(b"".join(TEXT.splitlines(keepends=True)[20:]))
    for number, rows in enumerate((ROWS[:20], ROWS[20:])):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"b-{number:05}-of-00002.parquet")
        (tmp_path / f"c-{number:05}-of-00002.json").write_text(json.dumps(rows))
    wanted = prepare(make_config(), model_path, whole, tmp_path / "cache").load_train()[:]
    for name in ("a-00000-of-00003.jsonl", "b-00000-of-00002.parquet", "c-00000-of-00002.json"):
        assert read_rows(tmp_path / name) == list(enumerate(ROWS, 1))
        assert count_rows(tmp_path / name) == len(ROWS)
        prepared = prepare(make_config(), model_path, tmp_path / name, tmp_path / "cache")
        assert prepared.load_train()[:] == wanted
    (tmp_path / "a-00002-of-00003.jsonl").write_bytes(b"".join(TEXT.splitlines(keepends=True)[20:30]))
    changed = prepare(make_config(), model_path, tmp_path / "a-00000-of-00003.jsonl", tmp_path / "cache")
    assert changed.stats["train"] != prepared.stats["train"]
    (tmp_path / "a-00001-of-00003.jsonl").unlink()
    with pytest.raises(InvalidDataset, match=r"is one of 3 parts, of which a-00001-of-00003\.jsonl is missing"):
        read_rows(tmp_path / "a-00000-of-00003.jsonl")
