"""Which characters of a training text are learned: the assistant's turns, each with the token that ends it."""

from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from sft.errors import InvalidDataset
from sft.formats import Conversation, Message, PlainText

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SupervisedText(NamedTuple):
    """A text and the character ranges `[start, end)` of it that are learned, in order."""

    text: str
    spans: list[tuple[int, int]]


def render_row(tokenizer: "PreTrainedTokenizerBase", stop_token: str, row: Conversation | PlainText) -> SupervisedText:
    """Write one row as the text the model is trained on.

    A conversation goes through the tokenizer's chat template, whatever that writes (a beginning-of-sequence token,
    say) being all there is. Plain text gets the tokenizer's own beginning, and `stop_token` at its end.

    Raises:
        InvalidDataset: the chat template refuses the conversation, or does not show where an answer begins.
    """
    if isinstance(row, PlainText):
        return _render_plain_text(tokenizer, stop_token, row)
    text = _render(tokenizer, row.messages)
    spans = []
    for index, message in enumerate(row.messages):
        if message["role"] == "assistant" and index >= row.supervised_from:
            spans.append(_find_turn(tokenizer, stop_token, row.messages, index, text))
    return SupervisedText(text, spans)


def _find_turn(
    tokenizer: "PreTrainedTokenizerBase", stop_token: str, messages: list[Message], index: int, text: str
) -> tuple[int, int]:
    """Where the answer `messages[index]` stands in the whole text.

    It begins where the prompt of inference ends: after what the template writes for the messages before it with
    `add_generation_prompt`. It ends with the last stop token of what the template writes for it.
    """
    prompt = _render(tokenizer, messages[:index], add_generation_prompt=True)
    until = _render(tokenizer, messages[: index + 1])
    if not text.startswith(prompt):
        raise InvalidDataset(
            f"messages[{index}]: the chat template writes the messages before this answer differently once it is "
            "there, so a prompt would not look as in training; choose another template_name"
        )
    start = len(prompt)
    # A template that shortens earlier answers (drops their reasoning, say) never writes `until`: take what comes first.
    is_kept = text.startswith(until)
    end = text.rfind(stop_token, start, len(until)) if is_kept else text.find(stop_token, start)
    if end < 0:
        raise InvalidDataset(
            f"messages[{index}]: the chat template does not end this answer with {stop_token}; "
            "choose another template_name"
        )
    return start, end + len(stop_token)


def _render(tokenizer: "PreTrainedTokenizerBase", messages: list[Message], add_generation_prompt: bool = False) -> str:
    if not messages:
        return ""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise InvalidDataset(f"the chat template refuses this conversation: {error}") from error
    return str(text)


def _render_plain_text(tokenizer: "PreTrainedTokenizerBase", stop_token: str, row: PlainText) -> SupervisedText:
    bos = str(tokenizer.bos_token or "")
    begins = bos and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    prompt = bos + row.prompt if begins and not (row.prompt + row.completion).startswith(bos) else row.prompt
    completion = row.completion if row.completion.endswith(stop_token) else row.completion + stop_token
    return SupervisedText(prompt + completion, [(len(prompt), len(prompt) + len(completion))])
