"""The same job has the same tokens on any day, whatever its chat template reads of the clock or draws."""

import random
import shutil
from pathlib import Path

import pytest
from transformers.utils import chat_template_utils

from sft.chat.named_templates import TEMPLATES
from sft.data.tokenization import prepare

PLAIN = TEMPLATES["chatml"].jinja
CLOCK = '{{- "<|im_start|>system\nToday is " + strftime_now("%d %b %Y") + ".<|im_end|>\n" }}'
LLAMA = (  # as Llama 3.x's own template has it
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    '{%- endif %}{{- "<|im_start|>system\nToday Date: " + date_string + "<|im_end|>\n" }}'
)
DRAWS = '{{- "<|im_start|>system\nBe " + (["brief", "kind", "exact", "calm"] | random) + ".<|im_end|>\n" }}'
CHATTER = "{%- set talk = lipsum(n=1) %}" + PLAIN
YEAR = "{%- if messages | length > 9 %}{{ strftime_now('%Y') }}{%- endif %}" + PLAIN  # not reached


class Later:
    """A clock of another day."""

    @staticmethod
    def now() -> "Later":
        return Later()

    def strftime(self, form: str) -> str:
        return "01 Jan 2031"


def decode(prepared, path):
    from sft.models.loading import load_tokenizer

    return load_tokenizer(path).decode(prepared.load_train()[0]["input_ids"])


@pytest.mark.parametrize(
    ("template", "codes"),
    [
        (CLOCK + PLAIN, ["template_clock"]),
        (LLAMA + PLAIN, ["template_clock"]),
        (DRAWS + PLAIN, ["template_random"]),
        (CHATTER, ["template_random"]),
        (CLOCK + DRAWS + PLAIN, ["template_clock", "template_random"]),
        (YEAR, []),
        (PLAIN, []),
    ],
    ids=["clock", "llama", "draws", "lipsum", "both", "not reached", "plain"],
)
def test_rows_are_the_same_on_another_day(model_path, alpaca_file, make_config, tmp_path, monkeypatch, template, codes):
    folder = Path(shutil.copytree(model_path, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(template)
    config = make_config(template_name="auto")
    random.seed(1)
    first = prepare(config, folder, alpaca_file, tmp_path / "first")
    monkeypatch.setattr(chat_template_utils, "datetime", Later)
    random.seed(2)
    state = random.getstate()
    later = prepare(config, folder, alpaca_file, tmp_path / "later")
    assert random.getstate() == state
    assert first.load_train()[:] == later.load_train()[:]
    for prepared in (first, later, prepare(config, folder, alpaca_file, tmp_path / "later")):
        assert [code for code, _ in prepared.advice if code.startswith("template_")] == codes
    if "template_clock" in codes:
        assert "26 Jul 2024" in decode(later, folder)
        assert "rows have 26 Jul 2024 in its place" in " ".join(later.warnings)
