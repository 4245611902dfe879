"""What a named chat template is."""

from typing import NamedTuple


class ChatTemplate(NamedTuple):
    """How a conversation is written.

    Attributes:
        jinja: works with a plain `tokenizer.apply_chat_template`, in transformers and vLLM alike.
        stop_token: ends every assistant turn; None is the tokenizer's own end-of-sequence token.
        special_tokens: each must be one token of the tokenizer.
        writes_bos: the text begins with the tokenizer's beginning-of-sequence token, which it must have.
        takes_bos: the text begins as any text of this tokenizer does, with that token or without.
    """

    jinja: str
    stop_token: str | None = None
    special_tokens: tuple[str, ...] = ()
    writes_bos: bool = False
    takes_bos: bool = False
