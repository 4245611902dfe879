"""A pipe in the place of a file: to open it waits for ever, in a request's thread as in a job. Sockets are alike."""

import contextlib
import json
import os
import re
import shutil
import socket
import threading

import pytest

from jobs.preflight.adapters import check_adapter
from jobs.preflight.context import CheckContext
from jobs.preflight.datasets import check_dataset
from jobs.preflight.models import check_model
from jobs.preflight.templates import check_template
from jobs.settings import Settings
from jobs.spec import JobSpec
from sft.adapting import adapters
from sft.config import SFTConfig
from sft.confinement import Limits, confined
from sft.data.data_files import count_rows, read_rows
from sft.data.file_content import check_kind
from sft.errors import DatasetNotFound, InvalidConfig, InvalidDataset, ModelUnusable, TuneyardError
from sft.models.loading import find_model
from sft.models.model_texts import check_texts
from tasks.dataset import describe_local
from tests.tiny_models import save_tiny_llama

SECONDS = 60


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)  # an address has 107 characters, fewer than a path


def in_time(work, *given):
    """What came of it; a test must not wait for ever with a product that does."""
    came = []

    def run():
        try:
            came.append(work(*given))
        except TuneyardError as error:
            came.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert came, "it waits for a file that never ends"
    return came[0]


@pytest.fixture
def settings(tmp_path):
    made = Settings(home=tmp_path)
    for root in (made.model_root, made.output_root, made.data_root):
        root.mkdir()
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(params=[make_pipe, make_socket])
def make(request):
    return request.param


@pytest.mark.parametrize("name", ["train.jsonl", "train.json", "train.csv", "train.parquet", "train.jsonl.gz"])
def test_a_dataset_that_is_no_file_is_refused(settings, make, name):
    folder = settings.data_root / "rows"
    folder.mkdir()
    make(folder / name)
    for path in (folder, folder / name):
        assert isinstance(in_time(describe_local, "rows", path, "train"), TuneyardError)
    for read in (check_kind, read_rows, count_rows):
        assert isinstance(in_time(read, folder / name), InvalidDataset)


def test_nor_one_that_is_held_out(settings, make):
    folder = settings.data_root / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n')
    make(folder / "eval.jsonl")
    assert "eval.jsonl is a pipe, a socket or a device" in str(in_time(describe_local, "rows", folder, "train"))


def spec(**fields):
    given = {"base_model": "tiny/model", "dataset_name": "rows", "dataset_format": "auto"} | fields
    return JobSpec.build(config=SFTConfig.from_dict(given))


def findings(check, settings, **fields):
    context = CheckContext(settings, workers_are_here=True)
    return in_time(lambda: [finding.text for finding in check(spec(**fields), context)])


def test_a_submission_names_them(settings, make):
    (settings.data_root / "rows").mkdir()
    make(settings.data_root / "rows" / "train.jsonl")
    assert "is a pipe, a socket or a device" in findings(check_dataset, settings)[0]
    assert findings(check_dataset, settings, dataset_name="rows/train.jsonl")


TEXTS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json", "x.jinja")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", *TEXTS])
def test_a_model_that_holds_one_is_refused(settings, make, model, name):
    folder = settings.model_root / "tiny" / "model"
    shutil.copytree(model, folder)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    assert f"{name} is a pipe, a socket or a device" in str(in_time(check_texts, folder, "it"))
    assert isinstance(in_time(find_model, "tiny/model", settings.model_root), TuneyardError)
    assert findings(check_model, settings)
    assert isinstance(findings(check_template, settings), list)


def test_an_adapter_that_holds_one_is_refused(settings, make):
    folder = settings.output_root / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    make(folder / "adapter_model.safetensors")
    assert "is a pipe" in findings(check_adapter, settings, adapter_path="adapter")[0]


@pytest.mark.parametrize(
    ("suffix", "error", "told"),
    [
        (".json", InvalidDataset, ".json has a line of more than 256 MiB"),
        (".jsonl", InvalidDataset, ".jsonl has a line of more than 256 MiB"),
        (".csv", InvalidDataset, ".csv has a line of more than 256 MiB"),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_file_of_endless_nothing_is_refused_before_it_is_hashed(settings, split, suffix, error, told):
    folder = settings.data_root / "endless"
    folder.mkdir()
    for path in (folder / "train.jsonl",) * (split != "train") + (folder / f"{split}{suffix}",):
        path.write_text('{"text": "a"}\n')
    os.truncate(folder / f"{split}{suffix}", 2**42)  # four terabytes, whose hash alone takes an hour
    with confined(Limits(2**30, 60, None)), pytest.raises(error, match=re.escape(f"{split}{told}")):
        describe_local("endless", folder, "train")


def test_what_is_a_file_still_is(settings, model):
    folder = settings.model_root / "tiny" / "model"
    shutil.copytree(model, folder)
    (folder / "more").mkdir()
    (folder / "broken link").symlink_to("nowhere")
    check_texts(folder, "it")
    make_pipe(folder / "pipe")
    with pytest.raises(ModelUnusable, match="pipe"):
        check_texts(folder, "it")


def test_a_link_to_itself_and_a_folder_of_thousands_of_names_are_told_in_a_sentence(settings):
    loop, many = settings.data_root / "loop", settings.data_root / "many"
    loop.mkdir()
    (loop / "train.jsonl").symlink_to("train.jsonl")
    with pytest.raises(InvalidConfig, match=r"is a link that leads outside .*, or nowhere"):
        describe_local("loop", loop, "train")
    many.mkdir()
    for number in range(500):
        (many / f"part{number}.jsonl").touch()
    with pytest.raises(DatasetNotFound, match="and 480 more") as caught:
        describe_local("many", many, "train")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("start", ["pissa_niter_999999999", "pissa_niter_16", "loftq", "evil", 1, ["pissa"], {"a": 1}])
def test_an_adapter_that_would_be_computed_anew_is_refused(tmp_path, start):
    """`pissa_niter_999999999` had kept a plan, and a job, computing without end."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "init_lora_weights": start}))
    with pytest.raises(InvalidConfig, match="can't be trained further: its init_lora_weights"):
        adapters._check_kind(tmp_path)
    for usual in (True, False, None, "gaussian", "pissa"):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "init_lora_weights": usual}))
        adapters._check_kind(tmp_path)
