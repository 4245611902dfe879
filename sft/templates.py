"""Named chat templates, as LLaMA-Factory's users know them. Imports neither torch nor transformers."""

import difflib
import re
from typing import TYPE_CHECKING, NamedTuple

from sft.errors import TemplateNotFound

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"


class ChatTemplate(NamedTuple):
    """How a conversation is written.

    `jinja` works with a plain `tokenizer.apply_chat_template`; `stop_token` ends every assistant turn (None: the
    tokenizer's own end-of-sequence token); each of `special_tokens` must be one token of the tokenizer.
    """

    jinja: str
    stop_token: str | None = None
    special_tokens: tuple[str, ...] = ()


def _build_chatml(default_system: str = "") -> ChatTemplate:
    opening = (
        "{%- if messages[0]['role'] != 'system' -%}"
        "{{- '<|im_start|>system\\n" + default_system + "<|im_end|>\\n' -}}"
        "{%- endif -%}"
    )
    jinja = (
        (opening if default_system else "")
        + "{%- for message in messages -%}"
        + "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
        + "{%- endfor -%}"
        + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )
    return ChatTemplate(jinja, "<|im_end|>", ("<|im_start|>", "<|im_end|>"))


_DEFAULT = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{- 'System: ' + message['content'] + eos_token + '\\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- 'Assistant:' + message['content'] + eos_token + '\\n' -}}"
    "{%- else -%}{{- 'Human: ' + message['content'] + eos_token + '\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:' -}}{%- endif -%}"
)

_ALPACA = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- 'Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request.\\n\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'system' -%}{{- message['content'] + '\\n\\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}"
    "{{- '### Response:\\n' + message['content'] + eos_token + '\\n\\n' -}}"
    "{%- else -%}{{- '### Instruction:\\n' + message['content'] + '\\n\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}"
)

_LLAMA3 = (
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- set role = 'ipython' if message['role'] == 'tool' else message['role'] -%}"
    "{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' + message['content'] + '<|eot_id|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)

TEMPLATES: dict[str, ChatTemplate] = {
    "default": ChatTemplate(_DEFAULT),
    "alpaca": ChatTemplate(_ALPACA),
    "chatml": _build_chatml(),
    "qwen": _build_chatml("You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
    "smollm": _build_chatml(),
    "smollm2": _build_chatml("You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "llama3": ChatTemplate(_LLAMA3, "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
}


def list_templates() -> list[str]:
    """Every name a `template_name` may have."""
    return [AUTO, *TEMPLATES]


def check_template_name(name: str) -> None:
    """Raises TemplateNotFound, naming what is known, unless a template has this name."""
    if name in list_templates():
        return
    nearest = difflib.get_close_matches(name, list_templates(), n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise TemplateNotFound(f"template_name {name!r} is not known; {hint}known are: {', '.join(list_templates())}")


def apply_template(tokenizer: "PreTrainedTokenizerBase", name: str, required: bool = True) -> str:
    """Make the tokenizer write conversations by this template, and return the token that ends an assistant turn.

    Sets `chat_template` and `eos_token`, so that a model saved with the tokenizer stops after its answer. Without
    `required`, a base model's tokenizer with no chat template passes under `auto`: plain text needs none.

    Raises:
        TemplateNotFound: the name is unknown, the tokenizer lacks a token the template needs, or `auto` is asked
            of a tokenizer that has no usable chat template.
    """
    check_template_name(name)
    if name == AUTO and not required and not tokenizer.chat_template and tokenizer.eos_token:
        return str(tokenizer.eos_token)
    if name == AUTO:
        stop_token = _find_stop_token(tokenizer)
    else:
        template = TEMPLATES[name]
        missing = [token for token in template.special_tokens if not _is_one_token(tokenizer, token)]
        if template.stop_token is None and tokenizer.eos_token is None:
            missing.append("an end-of-sequence token")
        if missing:
            raise TemplateNotFound(
                f"template_name {name} needs {', '.join(missing)}, which the tokenizer of this model lacks; "
                f"{_suggest_templates(tokenizer)}"
            )
        tokenizer.chat_template = template.jinja
        stop_token = template.stop_token or str(tokenizer.eos_token)
    tokenizer.eos_token = stop_token
    return stop_token


def _find_stop_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The first special token the tokenizer's own template writes after an answer."""
    if not tokenizer.chat_template:
        raise TemplateNotFound(
            f"template_name auto needs a tokenizer with a chat template and this model's has none; "
            f"{_suggest_templates(tokenizer)}"
        )
    answer = "Quite so"
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    tail = text.rpartition(answer)[2]
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    found = re.search("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)), tail)
    if not special or not found:
        raise TemplateNotFound(
            "template_name auto: this model's own chat template ends an answer without a special token, so training "
            f"could not teach it to stop; {_suggest_templates(tokenizer)}"
        )
    return found.group()


def _is_one_token(tokenizer: "PreTrainedTokenizerBase", token: str) -> bool:
    return token in tokenizer.get_vocab() and len(tokenizer.encode(token, add_special_tokens=False)) == 1


def _suggest_templates(tokenizer: "PreTrainedTokenizerBase") -> str:
    usable = [
        name
        for name, template in TEMPLATES.items()
        if (template.stop_token or tokenizer.eos_token)
        and all(_is_one_token(tokenizer, token) for token in template.special_tokens)
    ]
    return f"templates it can use: {', '.join(usable) or 'none'}"
