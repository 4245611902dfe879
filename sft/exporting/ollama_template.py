"""Finds the Go template with which Ollama writes the prompts that a tokenizer's chat template writes.

Ollama does not run Jinja. The Go templates in `sft/chat/ollama` are written for Ollama's variables (docs/modelfile.md
and template/template.go of github.com/ollama/ollama), one for each form in `sft/chat/jinja`; tests compare both with
Go's own `text/template`. A tokenizer's template is matched by what it writes, so a model's own template counts too.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sft.chat.named_templates import TEMPLATES
from sft.chat.steady import write_steadily
from sft.confinement import step
from sft.errors import ExportRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parents[1] / "chat" / "ollama"
SAME_FORM = {"qwen": "chatml"}  # without tools and thoughts
THOUGHTS = "thinks"  # Go templates can't take thoughts out of earlier answers
PADDED = "  padded  "

_SYSTEM = {"role": "system", "content": "Answer briefly, in English."}
_TALK = [
    {"role": "user", "content": "What is 1 < 2?"},
    {"role": "assistant", "content": "It is\n\ntrue."},
    {"role": "user", "content": "And «2 > 1» & 'so on'?"},
    {"role": "assistant", "content": "Too."},
    {"role": "user", "content": "Thanks"},
]
SAMPLES = (_TALK[:1], _TALK[:3], _TALK, [_SYSTEM, *_TALK[:1]], [_SYSTEM, *_TALK])


class GoTemplate(NamedTuple):
    """A template for Ollama.

    Attributes:
        name: of the named chat template of the same form.
        text: the Go template; the beginning-of-sequence token before the first turn is left to the tokenizer.
        begins_with_bos: whether prompts begin with that token.
        trims: whether the chat template removes spaces around messages, which a Go template can't.
    """

    name: str
    text: str
    begins_with_bos: bool
    trims: bool


def find_go_template(tokenizer: "PreTrainedTokenizerBase") -> GoTemplate:
    """Find the Go template that writes prompts as the tokenizer's chat template does.

    Raises ExportRefused if the tokenizer has no chat template, or one of a form that is not known.
    """
    if not tokenizer.chat_template:
        raise ExportRefused("the tokenizer has no chat template")
    own = [_render(tokenizer, str(tokenizer.chat_template), sample) for sample in SAMPLES]
    if own[0] is not None:
        for name, jinja in _list_candidates(tokenizer):
            if all(_render(tokenizer, jinja, sample) == text for sample, text in zip(SAMPLES, own, strict=True)):
                return _describe(tokenizer, name, own[0])
    raise ExportRefused("no Go template is known that writes what this chat template writes")


def begins_with_bos(tokenizer: "PreTrainedTokenizerBase") -> bool | None:
    """Whether prompts begin with the beginning-of-sequence token; None without a chat template that can be read."""
    if not tokenizer.chat_template:
        return None
    text = _render(tokenizer, str(tokenizer.chat_template), SAMPLES[0])
    return None if text is None else _has_bos(tokenizer, text)


def write_go_template(name: str, bos: str, eos: str) -> str:
    """The Go template of a named chat template, for these special tokens."""
    template = TEMPLATES[name]
    default = template.settings.partition("default_system = ")[2].partition(" %}")[0].strip("'")
    values = {"bos": bos, "eos": eos, "default": default}
    head = "".join(f"{{{{- ${name} := {json.dumps(value, ensure_ascii=False)} }}}}" for name, value in values.items())
    return head + _path(name).read_text(encoding="utf-8")


def _path(name: str) -> Path:
    file = TEMPLATES[name].file
    return FOLDER / f"{SAME_FORM.get(file, file)}.gotmpl"


def _list_candidates(tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[str, str]]:
    """Names and Jinja texts of the templates that have a Go template."""
    for name, template in TEMPLATES.items():
        if THOUGHTS not in template.settings:
            yield name, template.jinja
            if template.takes_bos and tokenizer.bos_token is not None:
                yield name, "{{- bos_token }}" + template.jinja


def _describe(tokenizer: "PreTrainedTokenizerBase", name: str, text: str) -> GoTemplate:
    padded = _render(tokenizer, str(tokenizer.chat_template), [{"role": "user", "content": PADDED}])
    return GoTemplate(
        name,
        write_go_template(name, str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")),
        _has_bos(tokenizer, text),
        padded is None or PADDED not in padded,
    )


def _has_bos(tokenizer: "PreTrainedTokenizerBase", text: str) -> bool:
    return bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))


def _render(tokenizer: "PreTrainedTokenizerBase", template: str, messages: list[dict[str, Any]]) -> str | None:
    """The prompt that a template writes; None if it refuses the messages."""
    try:
        with step():
            return write_steadily(tokenizer, messages, chat_template=template, add_generation_prompt=True)
    except MemoryError:
        raise
    except Exception:  # a template is a program of the model's publisher
        return None
