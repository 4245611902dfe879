"""Ollama's templates give the token ids that the chat templates give, which the adapters were trained on."""

import json
import re

import pytest

from sft.chat.named_templates import TEMPLATES
from sft.chat.templates import apply_template
from sft.errors import ExportRefused
from sft.exporting.modelfile import choose_parameters, write_modelfile
from sft.exporting.ollama_template import SAMPLES, THOUGHTS, choose_bos, find_go_template, write_go_template
from tests.go_templates import find_go, render, render_with_go
from tests.tiny_models import build_tokenizer

NAMES = [name for name, template in TEMPLATES.items() if THOUGHTS not in template.settings]
TALKS = [
    *SAMPLES,
    [{"role": "user", "content": '{{ .System }} {%- x %} "quotes" <b> é 東京 🙂\n\n\ttab'}],
    [{"role": "system", "content": "One"}, *({"role": role, "content": "x y"} for role in ["user", "assistant"] * 4)],
]


def build(name, **changes):
    """A tokenizer with the special tokens of every template, as a job with this one saves it."""
    tokenizer = build_tokenizer()
    special = {token for one in TEMPLATES.values() for token in (one.stop_token, *one.special_tokens) if token}
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", **changes})
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(special)})
    apply_template(tokenizer, name)
    return tokenizer


def read_ids(tokenizer, talk):
    return tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)["input_ids"]


def read_go_ids(tokenizer, template, text):
    """As Ollama does: special tokens are read in the text, and its tokenizer adds the first one if the file says so."""
    first = [tokenizer.bos_token_id] if choose_bos(tokenizer, template) else []
    return first + tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_of_ollama_has_the_ids_of_the_chat_template(name):
    tokenizer = build(name)
    template = find_go_template(tokenizer)
    for talk in TALKS:
        assert read_go_ids(tokenizer, template, render(template.text, talk)) == read_ids(tokenizer, talk)
    assert template.leaves_bos is TEMPLATES[name].writes_bos


@pytest.mark.skipif(find_go() is None, reason="needs a Go compiler on the PATH")
def test_go_itself_writes_the_same(tmp_path):
    cases = [(write_go_template(name, "<s>", "</s>"), talk) for name in NAMES for talk in TALKS]
    assert render_with_go(str(find_go()), cases, tmp_path) == [render(text, talk) for text, talk in cases]


def test_a_template_that_begins_with_the_tokenizers_first_token_leaves_it_to_the_tokenizer():
    from tokenizers import processors

    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    pair = ("<s>", tokenizer.bos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[pair]
    )
    apply_template(tokenizer, "vicuna")
    template = find_go_template(tokenizer)
    assert template.leaves_bos
    assert read_go_ids(tokenizer, template, render(template.text, TALKS[0])) == read_ids(tokenizer, TALKS[0])


def test_a_turn_may_begin_with_the_first_token_of_texts():
    """As in SmolLM2, whose beginning-of-sequence token is ChatML's `<|im_start|>`."""
    tokenizer = build("smollm2", bos_token="<|im_start|>")
    template = find_go_template(tokenizer)
    assert choose_bos(tokenizer, template) is False
    for talk in TALKS:
        assert read_go_ids(tokenizer, template, render(template.text, talk)) == read_ids(tokenizer, talk)


@pytest.mark.parametrize(
    ("jinja", "expected"), [("{{ bos_token }}x", None), ("x", False), ("{{ raise_exception('no') }}", None)]
)
def test_without_a_go_template_the_tokenizer_adds_nothing_that_the_chat_template_does_not(jinja, expected):
    tokenizer = build("chatml")
    tokenizer.chat_template = jinja
    assert choose_bos(tokenizer, None) is expected


def test_a_models_own_template_is_known_by_what_it_writes():
    tokenizer = build("chatml")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' ~ m['role'] ~ '\\n' ~ (m['content']|trim) ~ '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = find_go_template(tokenizer)
    assert (template.name, template.trims) == ("chatml", True)
    assert find_go_template(build("chatml")).trims is False


@pytest.mark.parametrize(
    "jinja",
    [
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{% endfor",
        TEMPLATES["qwen3"].jinja,
    ],
)
def test_no_template_is_invented(jinja):
    tokenizer = build("chatml")
    tokenizer.chat_template = jinja
    with pytest.raises(ExportRefused, match="no Go template is known that writes what this chat template writes"):
        find_go_template(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ExportRefused, match="has no chat template"):
        find_go_template(tokenizer)


def test_a_modelfile_holds_the_template_as_it_is(tmp_path):
    """Read as Ollama's parser does: between three quotation marks nothing is trimmed."""
    tokenizer = build("chatml")
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [tokenizer.eos_token_id, 0, "x", 10_000_000]})
    )
    parameters = choose_parameters(tokenizer, tmp_path)
    assert parameters == {"stop": ["<|im_end|>", "<|endoftext|>"], "repeat_penalty": 1}
    template = find_go_template(tokenizer)
    write_modelfile(tmp_path / "Modelfile", "A\nFROM b", "model.gguf", "adapter.gguf", template, parameters)
    written = (tmp_path / "Modelfile").read_text()
    assert re.search('TEMPLATE """(.*?)"""\n', written, re.DOTALL)[1] == template.text
    lines = written.splitlines()
    assert lines[:3] == ["# A FROM b", "FROM ./model.gguf", "ADAPTER ./adapter.gguf"]
    assert lines[-3:] == [
        'PARAMETER stop "<|im_end|>"',
        'PARAMETER stop "<|endoftext|>"',
        "PARAMETER repeat_penalty 1",
    ]
    parameters = {"stop": ['x"\nSYSTEM """']}
    with pytest.raises(ExportRefused, match="three quotation marks"):
        write_modelfile(tmp_path / "Modelfile", "A", "model.gguf", None, None, parameters)
    parameters = {"stop": ['x"\nSYSTEM y']}
    write_modelfile(tmp_path / "Modelfile", "A", "model.gguf", None, None, parameters)
    assert (tmp_path / "Modelfile").read_text().endswith('PARAMETER stop """x"\nSYSTEM y"""\n')
    assert "\nTEMPLATE" not in (tmp_path / "Modelfile").read_text()
    assert "\nADAPTER" not in (tmp_path / "Modelfile").read_text()
