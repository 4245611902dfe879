"""The parameters of a named chat template."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class ChatTemplate(NamedTuple):
    """How a conversation is rendered.

    Attributes:
        file: name of a file in `sft/chat/jinja`, without `.jinja`.
        stop_token: ends every assistant turn; None is the tokenizer's own end-of-sequence token.
        special_tokens: each must be one token of the tokenizer.
        writes_bos: the text begins with the tokenizer's beginning-of-sequence token, which it must have.
        takes_bos: the text begins with that token if the tokenizer adds it to any text.
        settings: Jinja that sets variables the file reads, for a family whose members differ in those alone.
    """

    file: str
    stop_token: str | None = None
    special_tokens: tuple[str, ...] = ()
    writes_bos: bool = False
    takes_bos: bool = False
    settings: str = ""

    def list_missing(self, has_token: Callable[[str], bool], has_bos: bool, has_eos: bool) -> list[str]:
        """Describe what the template needs and the tokenizer lacks."""
        missing = [token for token in self.special_tokens if not has_token(token)]
        if self.writes_bos and not has_bos:
            missing.append("a beginning-of-sequence token")
        if self.stop_token is None and not has_eos:
            missing.append("an end-of-sequence token")
        return missing

    @property
    def jinja(self) -> str:
        """The template; works with a plain `tokenizer.apply_chat_template`, in transformers and vLLM alike."""
        return self.settings + _read(self.file)


@functools.cache
def _read(file: str) -> str:
    path = Path(__file__).with_name("jinja") / f"{file}.jinja"
    return path.read_text(encoding="utf-8").removesuffix("\n")
