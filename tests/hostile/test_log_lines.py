"""A log record is one line, and shows no password, whatever somebody has put into a name."""

import io
import logging
import time
from collections.abc import Iterator

import pytest

from jobs.sanitizing.log_lines import LOGGERS, hide_passwords, keep_lines_whole
from sft.config import SFTConfig
from sft.errors import DatasetNotFound, InvalidConfig
from tasks.dataset_registry import git

BREAKS = [
    "\n", "\r", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\x1b[2J\x1b[1;1H",
    "\x9b2J",
    "\x08" * 9, "\x00", "\x7f", "\u202e", "\u2066", "\u200b", "\ufeff", "\x1b]0;title\x07",
    "\xad", "\u180e", "\u061c", "\ufff9", "\U000e0041", "\u2069",
]  # fmt: skip
FORGED = "2026-01-01 00:00:00 INFO jobs: all is well"


@pytest.fixture
def written() -> Iterator[io.StringIO]:
    """What the root logger's handler writes, in a format like ours."""
    stream, factory, root = io.StringIO(), logging.getLogRecordFactory(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    keep_lines_whole()
    yield stream
    logging.setLogRecordFactory(factory)
    root.removeHandler(handler)


@pytest.mark.parametrize("name", LOGGERS)
def test_no_name_makes_a_second_line(written: io.StringIO, name: str) -> None:
    for number, line_break in enumerate(BREAKS):
        said = (f"{name}.part", logging.WARNING, "x.py", 1, "%s: dataset %s", (number, f"a{line_break}{FORGED}"), None)
        # Through the root's handler alone: Prefect's own loggers would also send it to a run that there is not.
        logging.getLogger().handle(logging.getLogger(f"{name}.part").makeRecord(*said))
    lines = written.getvalue().splitlines()
    assert len(lines) == len(BREAKS)
    assert all(line.startswith(f"WARNING {name}.part: {number}: ") for number, line in enumerate(lines))
    assert all(line.isprintable() for line in lines)


def test_a_traceback_is_indented(written: io.StringIO) -> None:
    try:
        raise ValueError(f"x\n{FORGED} at https://u:secret@host/x")
    except ValueError:
        logging.getLogger("jobs.x").exception("failed")
    first, *others = written.getvalue().splitlines()
    assert first == "ERROR jobs.x: failed"
    assert all(line.startswith("  ") for line in others)
    assert "secret" not in written.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg2://me:p@ss:word@db:5432/x", "postgresql+psycopg2://me:***@db:5432/x"),
        ("https://me:secret@git.example/x.git failed", "https://me:***@git.example/x.git failed"),
        ("to https://ghp_secret@git.example/x and http://a:b@c", "to https://***@git.example/x and http://a:***@c"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("git@host:x.git", "git@host:x.git"),
        ("models:/a@b", "models:/a@b"),
    ],
)
def test_passwords_in_urls_are_hidden(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown


def test_a_registry_that_is_away_does_not_tell_its_password() -> None:
    with pytest.raises(DatasetNotFound, match="git ls-remote failed on the dataset registry") as refusal:
        git(None, "ls-remote", "--quiet", "--end-of-options", "http://me:secret@127.0.0.1:9/x", "HEAD")
    assert "secret" not in str(refusal.value)


def test_a_name_of_a_run_is_not_too_long_for_the_servers() -> None:
    plain = {"base_model": "m", "dataset_name": "d", "dataset_format": "auto"}
    assert SFTConfig.from_dict(plain | {"run_name": "x" * 250}).run_name == "x" * 250
    with pytest.raises(InvalidConfig, match="run_name"):
        SFTConfig.from_dict(plain | {"run_name": "x" * 251})


@pytest.mark.parametrize("text", ["i", "é", "a://", "://", "a:", "a@", "x://a:", "http://", "-.+"])
def test_a_text_without_end_is_written_at_once(text):
    """Anybody may ask for a path of 60,000 characters, and the event loop writes it down."""
    began = time.thread_time()
    hide_passwords(text * (60_000 // len(text)))
    hide_passwords(f"a://b:{text * (60_000 // len(text))}")
    assert time.thread_time() - began < 0.5  # 8 s where the time grew with the square of the length
