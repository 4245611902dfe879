"""Named chat templates, as LLaMA-Factory's users know them. Imports neither torch nor transformers."""

import difflib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from sft.chat.chat_template import ChatTemplate
from sft.chat.registry import TEMPLATES
from sft.chat.steady import write_steadily
from sft.confinement import step
from sft.errors import TemplateNotFound
from sft.models.weights import telling_unusable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AUTO = "auto"

T = TypeVar("T")


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


def explain_lack(
    name: str, tokenizer: T, list_missing: Callable[[T, ChatTemplate], list[str]], has_template: bool
) -> str | None:
    """Why a tokenizer can't write by the template of this name and which it can, None if it can.

    Args:
        tokenizer: it, or what is known of it.
        list_missing: what it lacks of what a template needs.
        has_template: it has a chat template of its own.
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
    """Whether the tokenizer puts its beginning-of-sequence token before a plain text."""
    if tokenizer.bos_token is None:
        return False
    with telling_unusable("base_model: its tokenizer"):
        ids: list[int] = tokenizer("a")["input_ids"]
    return ids[:1] == [tokenizer.bos_token_id]


def _find_stop_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The first special token the tokenizer's own template writes after an answer."""
    answer = "Quite so"
    messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": answer}]
    try:
        with step():
            text = write_steadily(tokenizer, messages)
    except MemoryError:
        raise
    except Exception as error:  # the model's template is its makers' code
        reason = str(error)[:300]  # it may be of any length
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
            "template_name auto: this model's own chat template ends an answer without a special token, so training "
            f"could not teach it to stop; {_suggest(tokenizer, _list_missing)}"
        )
    return found.group()


def _is_one_token(tokenizer: "PreTrainedTokenizerBase", token: str) -> bool:
    ids = tokenizer.encode(token, add_special_tokens=False)
    return len(ids) == 1 and tokenizer.convert_ids_to_tokens(ids[0]) == token


def _list_missing(tokenizer: "PreTrainedTokenizerBase", template: ChatTemplate) -> list[str]:
    has_bos, has_eos = tokenizer.bos_token is not None, tokenizer.eos_token is not None
    return template.list_missing(lambda token: _is_one_token(tokenizer, token), has_bos, has_eos)
