"""Reads the file that Weights & Biases writes offline: LevelDB's log format around protobuf records."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

FILE_HEADER = struct.Struct("<4sHB")  # b":W&B", a magic number, a version
RECORD_HEADER = struct.Struct("<IHB")  # checksum, length, kind: whole, first, middle or last piece
BLOCK_BYTES = 32 * 1024
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_history(file: Path) -> list[dict[str, Any]]:
    """What each `run.log` of the run wrote."""
    rows = []
    for data in _read_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append({item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def _read_records(content: bytes) -> Iterator[bytes]:
    mark, _magic, _version = FILE_HEADER.unpack_from(content)
    assert mark == b":W&B", mark
    position, pieces = FILE_HEADER.size, b""
    while position + RECORD_HEADER.size <= len(content):
        left_in_block = BLOCK_BYTES - position % BLOCK_BYTES
        if left_in_block < RECORD_HEADER.size:
            position += left_in_block
            continue
        _checksum, length, kind = RECORD_HEADER.unpack_from(content, position)
        position += RECORD_HEADER.size
        pieces += content[position : position + length]
        position += length
        if kind in (WHOLE, LAST):
            yield pieces
            pieces = b""
