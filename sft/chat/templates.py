"""Looks up named chat templates and sets them on a tokenizer. Imports neither torch nor transformers."""

import difflib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sft.chat.chat_template import ChatTemplate
from sft.chat.named_templates import TEMPLATES
from sft.chat.steady import write_steadily
from sft.confinement import step
from sft.errors import TemplateNotFound
from sft.models.weights import raising_unusable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"

T = TypeVar("T")


def list_templates() -> list[str]:
    """List the valid values of `template_name`."""
    return [AUTO, *TEMPLATES]


def check_template_name(name: str) -> None:
    """Raise TemplateNotFound, listing the known names, unless a template has this name."""
    if name in list_templates():
        return
    nearest = difflib.get_close_matches(name, list_templates(), n=1, cutoff=0.6)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    raise TemplateNotFound(f"template_name {name!r} is not known; {hint}known are: {', '.join(list_templates())}")


def explain_lack(
    name: str, tokenizer: T, list_missing: Callable[[T, ChatTemplate], list[str]], has_template: bool
) -> str | None:
    """Explain why a tokenizer can't use the template of this name and which ones it can; None if it can.

    Args:
        tokenizer: the tokenizer, or what is known about it.
        list_missing: lists what the tokenizer lacks for a template.
        has_template: whether it has its own chat template.
    """
    if name != AUTO and (missing := list_missing(tokenizer, TEMPLATES[name])):
        lack = f"{name} needs {', '.join(missing)}, which the tokenizer of this model lacks"
    elif name == AUTO and not has_template:
        lack = f"{AUTO} needs a tokenizer with a chat template and this model's has none"
    else:
        return None
    return f"{lack}; {_suggest(tokenizer, list_missing)}"


def _suggest(tokenizer: T, list_missing: Callable[[T, ChatTemplate], list[str]]) -> str:
    usable = [name for name, template in TEMPLATES.items() if not list_missing(tokenizer, template)]
    return f"templates it can use: {', '.join(usable) or 'none'}"


def apply_template(tokenizer: "PreTrainedTokenizerBase", name: str, required: bool = True) -> str:
    """Set the tokenizer's chat template, and return the token that ends an assistant turn.

    Sets `chat_template` and `eos_token`, so that a model saved with the tokenizer stops after its answer. If not
    `required`, a tokenizer without a chat template is accepted under `auto`: plain text needs none.

    Raises:
        TemplateNotFound: the name is unknown, the tokenizer lacks a token the template needs, or the name is `auto`
            and the tokenizer has no usable chat template.
    """
    check_template_name(name)
    if name == AUTO and not required and not tokenizer.chat_template and tokenizer.eos_token:
        return str(tokenizer.eos_token)
    if lack := explain_lack(name, tokenizer, _list_missing, bool(tokenizer.chat_template)):
        raise TemplateNotFound(f"template_name {lack}")
    if name == AUTO:
        stop_token = _find_stop_token(tokenizer)
    else:
        template = TEMPLATES[name]
        begins = "{{- bos_token }}" if template.takes_bos and begins_with_bos(tokenizer) else ""
        tokenizer.chat_template = begins + template.jinja
        stop_token = template.stop_token or str(tokenizer.eos_token)
    tokenizer.eos_token = stop_token
    return stop_token


def begins_with_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer adds its beginning-of-sequence token to plain text."""
    if tokenizer.bos_token is None:
        return False
    with raising_unusable("base_model: its tokenizer"):
        ids: list[int] = tokenizer("a")["input_ids"]
    return ids[:1] == [tokenizer.bos_token_id]


def _find_stop_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Find the first special token that the tokenizer's own template writes after an answer."""
    answer = "Quite so"
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]
    try:
        with step():
            text = write_steadily(tokenizer, messages)
    except MemoryError:
        raise
    except Exception as error:  # the template comes with the model and may fail in any way
        reason = str(error)[:300]
        raise TemplateNotFound(
            f"template_name auto: this model's own chat template can't write a question and its answer ({reason}); "
            f"{_suggest(tokenizer, _list_missing)}"
        ) from error
    tail = text.rpartition(answer)[2]
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    special |= set(tokenizer.all_special_tokens)
    found = re.search("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)), tail)
    if not special or not found:
        raise TemplateNotFound(
            "template_name auto: this model's own chat template ends an answer without a special token, so the model "
            f"could not learn to stop; {_suggest(tokenizer, _list_missing)}"
        )
    return found.group()


def _is_one_token(tokenizer: "PreTrainedTokenizerBase", token: str) -> bool:
    ids = tokenizer.encode(token, add_special_tokens=False)
    return len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids[0]) == token


def _list_missing(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate) -> list[str]:
    has_bos, has_eos = tokenizer.bos_token is not None, tokenizer.eos_token is not None
    return template.list_missing(lambda token: _is_one_token(tokenizer, token), has_bos, has_eos)
