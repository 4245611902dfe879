"""Large data is tokenized in shards by several processes, and gone on with after a stop."""

import hashlib
import json
import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from sft.config import SFTConfig
from sft.confinement import Limits, confined
from sft.data import data_stream, encoding, row_blocks, shards
from sft.data.tokenization import PreparedData, prepare
from sft.errors import InvalidDataset, ResourceLimit, StackError
from sft.files import publication
from tests.conftest import wait_until

MakeConfig = Callable[..., SFTConfig]
ROWS = 400


class Stop(BaseException):
    """A signal handler's exception."""


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a kilobyte, three to a shard."""
    monkeypatch.setattr(data_stream, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(row_blocks, "BLOCK_ROWS", 12)
    monkeypatch.setattr(shards, "SHARD_BLOCKS", 3)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Rows of all kinds: used, too long, without an answer, broken; blank lines, and a row longer than a block."""
    draw = random.Random(0)  # noqa: S311
    lines = []
    for n in range(ROWS):
        answer = " ".join(str(draw.randrange(100)) for _ in range(draw.randrange(1, 60)))
        lines.append(json.dumps({"instruction": f"Say {n}", "output": answer, "source": "web"}))
    lines[7], lines[8], lines[90] = '{"instruction": ', "", json.dumps({"instruction": "Hi", "output": 1})
    lines[200] = json.dumps({"instruction": "x " * 2000, "output": "Yo"})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def tokenize(model_path: Path, tmp_path: Path, make_config: MakeConfig, file: Path) -> Callable[..., PreparedData]:
    """Tokenizes `file` into the cache of a name."""

    def make(cache: str, processes: int, on_rows: Callable[[int], None] = lambda rows: None, **fields: Any) -> Any:
        config = make_config(**fields)
        return prepare(config, model_path, file, tmp_path / cache, processes=processes, on_rows=on_rows)

    return make


def read_all(prepared: PreparedData) -> dict[str, str]:
    """Hashes of the folder's files."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in prepared.folder.iterdir()}


def stop_after(rows: int) -> Callable[[int], None]:
    def on_rows(done: int) -> None:
        if done >= rows:
            raise Stop

    return on_rows


@pytest.mark.parametrize("fields", [{}, {"max_samples": 100}, {"validation_split": 0.0}], ids=str)
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    tokenize: Callable[..., PreparedData], monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    one, three = tokenize("one", 1, **fields), tokenize("three", 3, **fields)
    assert read_all(one) == read_all(three)
    assert sum(name.startswith("train-") for name in read_all(one)) > 5
    monkeypatch.undo()
    whole = tokenize("whole", 1, **fields)
    assert [path.name for path in sorted(whole.folder.glob("train-*"))] == ["train-00000.arrow"]
    assert (whole.stats, whole.notes, whole.reasons, whole.advice) == (one.stats, one.notes, one.reasons, one.advice)
    assert whole.load_train()[:] == one.load_train()[:]
    if whole.stats["eval"]:
        assert whole.load_eval()[:] == one.load_eval()[:]  # type: ignore[index]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_stopped_one_goes_on_after_its_last_shard(
    tokenize: Callable[..., PreparedData], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processes: int
) -> None:
    whole = tokenize("whole", 1)
    with pytest.raises(Stop):
        tokenize("cache", processes, stop_after(200))
    hashed: list[int] = []
    monkeypatch.setattr(encoding, "hash_rows", lambda *_: hashed.append(1))
    told: list[int] = []
    again = tokenize("cache", processes, told.append)
    assert read_all(again) == read_all(whole)
    assert 100 < told[0] < 200  # rows that were tokenized before
    assert told[-1] == ROWS - 1
    assert not hashed  # the rows' sides are known
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [again.folder.name]


@pytest.mark.parametrize("moved", [1, 4, 10**9], ids=["one file", "four files", "all files"])
def test_one_that_ends_while_its_files_are_moved_to_their_place_loses_no_row(
    tokenize: Callable[..., PreparedData], monkeypatch: pytest.MonkeyPatch, moved: int
) -> None:
    whole = tokenize("whole", 1)
    rename, renamed = Path.rename, list[str]()

    def rename_some(path: Path, target: Path) -> Path:
        if path.suffix == ".arrow":
            if len(renamed) == moved:
                raise Stop
            renamed.append(path.name)
        return rename(path, target)

    def stop(*_: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", rename_some)
        patch.setattr(publication, "_put_in_place", stop)
        with pytest.raises(Stop):
            tokenize("cache", 1)
    assert renamed
    assert read_all(tokenize("cache", 1)) == read_all(whole)


def test_a_folder_without_any_file_is_made_again(tokenize: Callable[..., PreparedData]) -> None:
    """As a release that lost them there left behind."""
    whole = tokenize("whole", 1)
    lost = tokenize("cache", 1)
    for path in lost.folder.glob("*.arrow"):
        path.unlink()
    manifest = lost.folder / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text(encoding="utf-8")) | {"files": {}}), encoding="utf-8")
    assert read_all(tokenize("cache", 1)) == read_all(whole)


def test_a_killed_one_leaves_no_process_and_is_gone_on_with(
    tokenize: Callable[..., PreparedData], tmp_path: Path
) -> None:
    children: list[psutil.Process] = []
    reading, writing = os.pipe()

    def die(rows: int) -> None:
        if rows >= 200:
            os.write(writing, json.dumps([child.pid for child in psutil.Process().children()]).encode())
            os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if not pid:
        try:
            tokenize("cache", 2, die)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    pids = json.loads(os.read(reading, 1000))
    os.close(reading)
    os.close(writing)
    assert len(pids) == 2
    wait_until(lambda: not any(psutil.pid_exists(child) for child in pids), 20)
    assert not children
    told: list[int] = []
    again = tokenize("cache", 2, told.append)
    assert told[0] > 100
    assert read_all(again) == read_all(tokenize("whole", 1))


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_bad_row_is_the_error_whatever_the_number_of_processes(
    tokenize: Callable[..., PreparedData], tmp_path: Path, processes: int
) -> None:
    with pytest.raises(InvalidDataset, match=r"^row 8: not JSON: Expecting value at column 17$"):
        tokenize("cache", processes, invalid_rows="error")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_process_that_dies_is_worth_another_attempt(tokenize: Callable[..., PreparedData]) -> None:
    others = set(psutil.Process().children())

    def kill(rows: int) -> None:
        if rows >= 200:
            next(child for child in psutil.Process().children() if child not in others).kill()

    with pytest.raises(StackError, match="was ended by SIGKILL"):
        tokenize("cache", 2, kill)
    told: list[int] = []
    tokenize("cache", 2, told.append)
    assert told[0] > 100


def test_one_process_tokenizes_and_others_wait_for_it(tokenize: Callable[..., PreparedData]) -> None:
    begun, may_go_on = threading.Event(), threading.Event()
    made: list[PreparedData] = []

    def hold(rows: int) -> None:
        begun.set()
        may_go_on.wait(60)

    first = threading.Thread(target=lambda: made.append(tokenize("cache", 1, hold)))
    first.start()
    begun.wait(60)
    second = threading.Thread(target=lambda: made.append(tokenize("cache", 1)))
    second.start()
    second.join(0.5)
    assert second.is_alive()
    may_go_on.set()
    first.join(60)
    second.join(60)
    assert [data.was_cached for data in made] == [False, True]


def test_a_template_without_end_is_told_by_the_process_that_writes_it(
    tokenize: Callable[..., PreparedData], model_path: Path, tmp_path: Path, make_config: MakeConfig, file: Path
) -> None:
    model = tmp_path / "endless"
    model.mkdir()
    for path in model_path.iterdir():
        (model / path.name).write_bytes(path.read_bytes())
    (model / "chat_template.jinja").write_text("{{ 9**(9**9) }}", encoding="utf-8")
    config = make_config(template_name="auto")
    with (
        pytest.raises(ResourceLimit, match=r"template_name auto: .* takes more than 1 s of CPU time"),
        confined(Limits(None, 1.0, None)),
    ):
        prepare(config, model, file, tmp_path / "cache", processes=2)
