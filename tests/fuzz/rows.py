"""Rows that `make fuzz` sends, and where it has put some before its first request."""

import json

ROWS = "".join(
    f"{json.dumps({'instruction': 'Say it.', 'output': f'answer number {number:2}'})}\n" for number in range(6)
).encode()  # schemathesis.toml has their size
MODEL, DATASET = "fuzz/tiny", "fuzz-rows"
REAL = "TESTS_FUZZ_REAL"  # variable: a part of the files are these rows
