"""Files that would take all time or memory end their plan's process, and are told in one sentence."""

import json
import lzma
import os
import shutil
import signal
import tarfile
import threading
import time
import zipfile

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.service.planner import PlanCancelled, Planner
from jobs.settings import Settings
from sft.config import SFTConfig
from sft.errors import ModelUnusable, ResourceLimit, TuneyardError
from tests.conftest import is_gone, wait_until
from tests.tiny_models import save_tiny_llama

pytestmark = pytest.mark.timeout(600)

LIMITS = {"input_step_seconds": 1, "input_memory_bytes": 300 * 2**20}
CHAT = {"dataset_name": "chat.jsonl", "dataset_format": "chat", "template_name": "auto"}
TIME, MEMORY = "INPUT_STEP_SECONDS", "INPUT_MEMORY_BYTES"


@pytest.fixture(scope="module")
def settings(tmp_path_factory, registry):
    """A state folder with a tiny model, a few rows, and low limits."""
    found = Settings(home=tmp_path_factory.mktemp("home"), dataset_registry=registry, **LIMITS)
    save_tiny_llama(found.model_root / "tiny/llama")
    found.data_root.mkdir(parents=True)
    turns = [{"role": "user", "content": "Say one."}, {"role": "assistant", "content": "It is one."}]
    rows = [json.dumps({"messages": turns})] * 4
    (found.data_root / "chat.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return found


@pytest.fixture(scope="module")
def planner():
    """One planner process for all these tests."""
    planner = Planner(at_once=2)
    yield planner
    planner.close()


def plan(planner, settings, **fields):
    usual = {"base_model": "tiny/llama", "batch_size": 2, "mixed_precision": "none"}
    return planner.plan(SFTConfig.from_dict(usual | CHAT | fields), settings)


def copy_model(settings, name):
    folder = settings.model_root / "tiny" / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(settings.model_root / "tiny/llama", folder)
    return folder


ENDLESS = "{% for i in range(10**9) %}{% endfor %}"
LOOP = "{% set n = namespace(x=1) %}{% for i in range(99999) %}{% for j in range(99999) %}{% set n.x = n.x + 1 %}"
TEMPLATES = {
    "power": ("{{ 9**(9**9) }}", TIME),
    "a power in a filter": ("{{ (9**(9**9))|string|length }}", TIME),
    "nested loops": (f"{LOOP}{{% endfor %}}{{% endfor %}}", TIME),
    "a joiner": ("{% set c = joiner(',') %}{% for i in range(99999) %}" + "{% for j in range(99999) %}{{ c() }}"
                 "{% endfor %}{% endfor %}", TIME),
    "a long text": ("{{ 'a' * 10**10 }}", MEMORY),
    "a long list": ("{{ ([1] * 10**9)|length }}", MEMORY),
    "a doubled text": ("{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}"
                       "{% endfor %}{{ n.x }}", MEMORY),
}  # fmt: skip


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_without_end_is_a_sentence(planner, settings, kind):
    template, limit = TEMPLATES[kind]
    folder = copy_model(settings, "template")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    started_at = time.monotonic()
    with pytest.raises(ResourceLimit, match=f"template_name auto.*{limit}") as caught:
        plan(planner, settings, base_model="tiny/template")
    assert 400 <= caught.value.status < 500
    assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - started_at < 120


def test_what_a_template_raises_is_told_in_part(planner, settings):
    folder = copy_model(settings, "template")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('x' * 10**7) }}", encoding="utf-8")
    with pytest.raises(TuneyardError, match="can't write a question and its answer") as caught:
        plan(planner, settings, base_model="tiny/template")
    assert len(str(caught.value)) < 1000


def test_a_tokenizer_whose_settings_are_nonsense_is_a_sentence(planner, settings):
    folder = copy_model(settings, "tokenizer")
    content = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps(content | {"model_max_length": "x"}), encoding="utf-8")
    with pytest.raises(ModelUnusable, match=r"the tokenizer of base_model .* can't be read"):
        plan(planner, settings, base_model="tiny/tokenizer")


def split(pattern):
    return {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}}


WORD_PIECE = {"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "", "max_input_chars_per_word": 9}
REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 2000}
TOKENIZERS = {
    "a pattern tried at each place": (split("a*[^ab]"), 80_000, ResourceLimit, TIME),
    "a pattern that gives up": (split("(a|aa)+$"), 80, ModelUnusable, "base_model .*tokenizer.* fails"),
    "no token for what is unknown": (
        {"model": WORD_PIECE | {"vocab": {"a": 0}}},
        80,
        ModelUnusable,
        "tokenizer of base_model .*UNK",
    ),
    "a text that grows": (
        {"normalizer": {"type": "Sequence", "normalizers": [REPLACE] * 3}},
        80,
        ResourceLimit,
        MEMORY,
    ),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_tokenizer_without_end_is_a_sentence(planner, settings, kind):
    part, length, error, words = TOKENIZERS[kind]
    folder = copy_model(settings, "tokenizer")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(content | part), encoding="utf-8")
    rows = [json.dumps({"instruction": "a", "output": "a" * length + "b"})] * 4
    (settings.data_root / "ab.jsonl").write_text("\n".join(rows), encoding="utf-8")
    data = {"dataset_name": "ab.jsonl", "dataset_format": "alpaca", "template_name": "chatml"}
    with pytest.raises(error, match=words) as caught:
        plan(planner, settings, base_model="tiny/tokenizer", **data)
    assert 400 <= caught.value.status < 500


def write_parquet(path):
    """A dictionary page of one value that stands in every row."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 2000, pa.int32()), pa.array(["a" * 2**20]))
    pq.write_table(pa.table({"text": column}), path, compression="zstd")


def write_repeated(path):
    """Twenty million rows of one letter in a few kilobytes."""
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(20_000_000, "int32")), pa.array(["a"]))
    pq.write_table(pa.table({"text": column}), path, row_group_size=20_000_000, compression="zstd")


def claim_rows(path):
    """A footer that claims 2^55 rows, and a row group of ten."""
    pq.write_table(pa.table({"text": ["a"] * 10}), path)
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[-8:-4], "little")
    at = content.index(b"\x16\x14", len(content) - 8 - length)  # the first number of ten in the footer
    content[at + 1 : at + 2] = b"\xfe" + b"\xff" * 6 + b"\x7f"
    content[-8:-4] = (length + 7).to_bytes(4, "little")
    path.write_bytes(content)


def write_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.jsonl", bytes(10**7))


FILES = {
    "nested.json": lambda path: path.write_text("[" * 100_000 + "]" * 100_000),
    "nested.jsonl": lambda path: path.write_text('{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n"),
    "sparse.jsonl": lambda path: (path.touch(), os.truncate(path, 0), path.write_text('{"text": "'),
                                  os.truncate(path, 2**30)),
    "page.parquet": write_parquet,
    "wide.parquet": lambda path: pq.write_table(pa.table({f"c{n}": ["x"] for n in range(10_001)}), path),
    "wide.csv": lambda path: path.write_text("text" + ",c" * 500_000 + "\na" + "," * 500_000 + "\n"),
    "claims.parquet": claim_rows,
    "footer.parquet": lambda path: path.write_bytes(b"PAR1" + (2**31 - 1).to_bytes(4, "little") + b"PAR1"),
    "claims.arrow": lambda path: path.write_bytes(b"ARROW1\0\0" + b"\xff" * 4 + (2**31 - 1).to_bytes(4, "little")),
    "arrow.parquet": lambda path: path.write_bytes(b"ARROW1\0\0" + b"\xff" * 4 + (2**31 - 1).to_bytes(4, "little")),
    "tar.jsonl": lambda path: tarfile.open(path, "w").close(),
    "tar.parquet": lambda path: tarfile.open(path, "w").close(),
    "zip.jsonl": write_zip,
    "xz.json": lambda path: path.write_bytes(lzma.compress(bytes(10**7), preset=0)),
    "lists.json": lambda path: path.write_text("[" + "[]," * 500_000 + "[]]"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_does_not_fit_is_a_sentence(planner, settings, name):
    path = settings.data_root / name
    FILES[name](path)
    try:
        with pytest.raises(TuneyardError, match=name) as caught:
            plan(planner, settings, dataset_name=name, dataset_format="completion", template_name="chatml")
    finally:
        path.unlink()
    assert 400 <= caught.value.status < 500
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("pattern", [r"(.*)*(.*)*(.*)*x$", r"((\w|\.)+)+\d{9}"])
def test_a_pattern_without_end_is_a_sentence(planner, settings, pattern):
    with pytest.raises(ResourceLimit, match=f"lora_target_modules.*{TIME}"):
        plan(planner, settings, lora_target_modules=[pattern])


def test_nobody_waits_for_a_plan_that_holds_the_interpreter(planner, settings):
    """The client hangs up, the service is killed, the planner's process is: the plan's own process ends."""
    patient = settings.model_copy(update={"input_step_seconds": 300.0})
    folder = copy_model(settings, "held")
    (folder / "chat_template.jinja").write_text("{{ 9**(9**9) }}", encoding="utf-8")
    planner.start()
    process = psutil.Process(planner._process.pid)
    gone = threading.Event()

    def ask():
        config = SFTConfig.from_dict({"base_model": "tiny/held", "batch_size": 2, "mixed_precision": "none"} | CHAT)
        with pytest.raises((PlanCancelled, TuneyardError)):
            planner.plan(config, patient, gone.is_set)

    def start():
        asking = threading.Thread(target=ask)
        asking.start()
        wait_until(process.children, 60)
        (child,) = process.children()
        wait_until(lambda: child.cpu_times().user > 0.5, 60)
        return asking, child

    asking, child = start()
    gone.set()
    asking.join(60)
    wait_until(lambda: is_gone(child), 30)
    gone.clear()
    asking, child = start()
    process.send_signal(signal.SIGKILL)
    wait_until(lambda: is_gone(child), 30)
    gone.set()
    asking.join(60)


def test_an_ordinary_plan_is_made_within_the_limits(planner, settings):
    assert plan(planner, settings)["steps"] > 0


def test_a_plan_of_twenty_million_rows_reads_a_sample(planner, settings):
    """In the memory of a few: the file has kilobytes."""
    path = settings.data_root / "rows.parquet"
    write_repeated(path)
    rows = {"dataset_name": "rows.parquet", "dataset_format": "completion", "template_name": "chatml"}
    try:
        made = plan(planner, settings, **rows)
    finally:
        path.unlink()
    assert made["sample"]["of"] == 20_000_000
    assert made["batches"]["batches_per_epoch"] == pytest.approx(10_000_000, rel=0.01)
