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
        text: the Go template.
        leaves_bos: whether prompts begin with a beginning-of-sequence token that the text leaves to the tokenizer.
        trims: whether the chat template removes spaces around messages, which a Go template can't.
    """

    name: str
    text: str
    leaves_bos: bool
    trims: bool


def find_go_template(tokenizer: "PreTrainedTokenizerBase") -> GoTemplate:
    """Find the Go template that writes prompts as the tokenizer's chat template does.

    Raises ExportRefused if the tokenizer has no chat template, or one of a form that is not known.
    """
    if not tokenizer.chat_template:
        raise ExportRefused("the tokenizer has no chat template")
    own = [_render(tokenizer, str(tokenizer.chat_template), sample) for sample in SAMPLES]
    if own[0] is not None:
        for name, jinja, leaves_bos in _list_candidates(tokenizer):
            if all(_render(tokenizer, jinja, sample) == text for sample, text in zip(SAMPLES, own, strict=True)):
                return _describe(tokenizer, name, leaves_bos)
    raise ExportRefused("no Go template is known that writes what this chat template writes")


def choose_bos(tokenizer: "PreTrainedTokenizerBase", template: GoTemplate | None) -> bool | None:
    """Whether a file's tokenizer must begin texts with the beginning-of-sequence token; None if either will do.

    Programs that run the chat template itself remove that token from its text if the tokenizer adds it. A chat template
    may begin with it by accident: in ChatML it is `<|im_start|>` for some models.
    """
    if template is not None:
        return template.leaves_bos
    text = _render(tokenizer, str(tokenizer.chat_template), SAMPLES[0]) if tokenizer.chat_template else None
    return None if text is None or text.startswith(str(tokenizer.bos_token or text)) else False


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


def _list_candidates(tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[str, str, bool]]:
    """Names and Jinja texts of the templates that have a Go template, and whether that leaves a token out."""
    for name, template in TEMPLATES.items():
        if THOUGHTS not in template.settings:
            yield name, template.jinja, template.writes_bos
            if template.takes_bos and tokenizer.bos_token is not None:
                yield name, "{{- bos_token }}" + template.jinja, True


def _describe(tokenizer: "PreTrainedTokenizerBase", name: str, leaves_bos: bool) -> GoTemplate:
    padded = _render(tokenizer, str(tokenizer.chat_template), [{"role": "user", "content": PADDED}])
    return GoTemplate(
        name,
        write_go_template(name, str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")),
        leaves_bos,
        padded is None or PADDED not in padded,
    )


def _render(tokenizer: "PreTrainedTokenizerBase", template: str, messages: list[dict[str, Any]]) -> str | None:
    """The prompt that a template writes; None if it refuses the messages."""
    try:
        with step():
            return write_steadily(tokenizer, messages, chat_template=template, add_generation_prompt=True)
    except MemoryError:
        raise
    except Exception:  # a template is a program of the model's publisher
        return None
