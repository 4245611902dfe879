"""Check that the chat template suits the base model's tokenizer, by the tokenizer's files."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jobs.preflight.context import CheckContext
from jobs.preflight.file_checks import read_lock
from jobs.preflight.findings import Finding
from jobs.preflight.models import find_model_folder
from jobs.spec import JobSpec
from sft.chat.chat_template import ChatTemplate
from sft.chat.named_templates import TEMPLATES
from sft.chat.templates import AUTO, explain_lack
from sft.errors import ModelUnusable, TemplateNotFound
from sft.files.stamps import TEMPLATES_FOLDER, stamp_folder
from sft.models.model_texts import PLAIN_CLASSES, check_texts, read_object

VOCABULARY = "tokenizer.json"
FILES = (VOCABULARY, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def check_template(spec: JobSpec, context: CheckContext) -> Iterator[Finding]:
    """Find a template with tokens that the tokenizer lacks, or `auto` for a tokenizer without a template."""
    name = spec.config.template_name
    folder = find_model_folder(spec.config.base_model, context)
    if folder is None or (name != AUTO and name not in TEMPLATES):
        return
    tokenizer = _find_tokenizer(folder)
    if tokenizer is None:
        return
    is_plain_text = spec.config.dataset_format in ("completion", "auto")  # may need no template
    has_template = is_plain_text or tokenizer.has_template or _has_template_file(folder)
    if lack := explain_lack(name, tokenizer, _list_missing, has_template):
        yield Finding(TemplateNotFound, "template_name", lack)


def has_chat_template(folder: Path) -> bool:
    """Whether the model in this folder has a chat template of its own, as `auto` needs. Raises TimeoutError."""
    tokenizer = _find_tokenizer(folder)
    return tokenizer is not None and (tokenizer.has_template or _has_template_file(folder))


class _Tokenizer(NamedTuple):
    """Facts from a tokenizer's files. None: not known."""

    tokens: frozenset[str]  # those of the tokens that any template needs
    has_bos: bool | None
    has_eos: bool | None
    has_template: bool  # in its configuration


def _find_tokenizer(folder: Path) -> _Tokenizer | None:
    """Read the tokenizer's files; None if there is none, or none that can be read."""
    if not (folder / VOCABULARY).is_file():
        return None
    try:
        check_texts(folder, "")
    except ModelUnusable:  # reported by the model's check
        return None
    stamp = stamp_folder(folder)
    with read_lock():
        return _look_at(folder, stamp)


@functools.lru_cache(maxsize=64)
def _look_at(folder: Path, _stamp: str) -> _Tokenizer:
    """Read the files; cached until they change.

    Tokens are searched as JSON text, since parsing takes ten times as long. A false match only misses a warning.
    """
    content = b"\n".join((folder / file).read_bytes() for file in FILES if (folder / file).is_file())
    wanted = {token for template in TEMPLATES.values() for token in template.special_tokens}
    tokens = frozenset(token for token in wanted if any(spelling in content for spelling in _spellings(token)))
    declared, special = read_object(folder / "tokenizer_config.json"), read_object(folder / "special_tokens_map.json")
    is_plain = declared.get("tokenizer_class") in PLAIN_CLASSES

    def has(name: str) -> bool | None:
        return True if declared.get(name) or special.get(name) else False if is_plain else None

    return _Tokenizer(tokens, has("bos_token"), has("eos_token"), bool(declared.get("chat_template")))


def _has_template_file(folder: Path) -> bool:
    names = ("chat_template.jinja", "chat_template.json", TEMPLATES_FOLDER)
    return any((folder / name).exists() for name in names)


def _spellings(token: str) -> set[bytes]:
    return {json.dumps(token).encode(), json.dumps(token, ensure_ascii=False).encode()}


def _list_missing(tokenizer: _Tokenizer, template: ChatTemplate) -> list[str]:
    has_bos, has_eos = tokenizer.has_bos is not False, tokenizer.has_eos is not False
    return template.list_missing(tokenizer.tokens.__contains__, has_bos, has_eos)
