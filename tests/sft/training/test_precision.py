"""`mixed_precision: auto` is measured once a machine; plans, jobs and their later attempts agree on it."""

import json
import threading

import pytest

from sft.errors import InvalidConfig
from sft.models.dtype_record import FILE, describe_machine, measure_once, read_record
from sft.models.loading import DtypeSupport
from sft.training.precision import fix_precision

FAST_BF16, SLOW_BF16 = (1.0, 0.4), (1.0, 1.6)


@pytest.fixture
def measured(monkeypatch):
    """A CPU whose measurements are those put into the list, one after the other."""
    answers = []
    support = DtypeSupport(False, False, lambda: answers.pop(0))
    monkeypatch.setattr("sft.training.precision.inspect_dtypes", lambda: support)
    return answers


def test_a_busy_machine_gives_the_same_answer_again(make_config, tmp_path, measured):
    measured += [FAST_BF16, SLOW_BF16, SLOW_BF16]
    auto = make_config(mixed_precision="auto")
    chosen = [fix_precision(auto, tmp_path / "state").mixed_precision for _ in range(3)]
    assert chosen == ["bf16"] * 3
    assert len(measured) == 2
    record = read_record(tmp_path / "state")
    assert (record.mixed_precision, record.fp32_seconds, record.bf16_seconds) == ("bf16", *FAST_BF16)


def test_another_machine_that_shares_the_folder_measures_for_itself(make_config, tmp_path, measured, monkeypatch):
    measured += [FAST_BF16, SLOW_BF16]
    auto = make_config(mixed_precision="auto")
    assert fix_precision(auto, tmp_path).mixed_precision == "bf16"
    with monkeypatch.context() as patch:
        patch.setattr("sft.models.dtype_record.describe_machine", lambda: "another CPU")
        assert fix_precision(auto, tmp_path).mixed_precision == "none"
    assert fix_precision(auto, tmp_path).mixed_precision == "bf16"
    assert set(json.loads((tmp_path / FILE).read_text())) == {describe_machine(), "another CPU"}


def test_those_who_ask_at_once_agree(tmp_path):
    answers = iter(["bf16", "none"] * 4)
    found = []

    def ask():
        found.append(measure_once(tmp_path, lambda: (next(answers), 1.0, 1.0)).mixed_precision)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["bf16"] * 8


@pytest.mark.parametrize("content", ["", "{", "[]", '{"some machine": 3}'])
def test_a_record_that_cant_be_read_is_made_again(make_config, tmp_path, measured, content):
    (tmp_path / FILE).write_text(content)
    measured.append(SLOW_BF16)
    assert fix_precision(make_config(mixed_precision="auto"), tmp_path).mixed_precision == "none"
    assert read_record(tmp_path).mixed_precision == "none"


def test_where_nothing_can_be_kept_it_is_measured_each_time(make_config, tmp_path, measured):
    (tmp_path / "state").write_text("no folder")
    measured += [FAST_BF16, SLOW_BF16]
    auto = make_config(mixed_precision="auto")
    assert [fix_precision(auto, tmp_path / "state").mixed_precision for _ in range(2)] == ["bf16", "none"]


def test_a_setting_comes_before_the_record_and_a_request_before_both(make_config, tmp_path, measured):
    measured.append(FAST_BF16)
    auto = make_config(mixed_precision="auto")
    assert fix_precision(auto, tmp_path, "none").mixed_precision == "none"
    assert fix_precision(make_config(mixed_precision="none"), tmp_path, "bf16").mixed_precision == "none"
    with pytest.raises(InvalidConfig, match="fp16 needs a CUDA device"):
        fix_precision(auto, tmp_path, "fp16")
    assert len(measured) == 1


def test_a_job_keeps_what_it_began_with(make_config, tmp_path, measured):
    measured += [FAST_BF16, SLOW_BF16]
    auto = make_config(mixed_precision="auto")
    assert fix_precision(auto, tmp_path / "a", output_dir=tmp_path / "job").mixed_precision == "bf16"
    assert fix_precision(auto, tmp_path / "b", "none", output_dir=tmp_path / "job").mixed_precision == "bf16"
