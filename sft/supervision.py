"""Which characters of a training text are learned: the assistant's turns, each with the token that ends it."""

import json
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from sft.errors import InvalidDataset
from sft.formats import Conversation, PlainText
from sft.messages import Message, Tool
from sft.templates import begins_with_bos

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CALLING_TEMPLATES = "qwen, qwen3, llama3, mistral or deepseek3"


class SupervisedText(NamedTuple):
    """A text and the character ranges `[start, end)` of it that are learned, in order.

    `rewritten` counts earlier answers that are read only, since the chat template writes them in another way than the
    model would be asked to (Qwen3's own takes out their reasoning).
    """

    text: str
    spans: list[tuple[int, int]]
    rewritten: int = 0


class Renderer(NamedTuple):
    """A tokenizer whose template `sft.templates.apply_template` has set, and the token that ends an answer.

    `train_on_prompt` has everything up to the end of the last answer learned, `mask_history` the last answer alone.
    """

    tokenizer: "PreTrainedTokenizerBase"
    stop_token: str
    train_on_prompt: bool = False
    mask_history: bool = False

    def render(self, row: Conversation | PlainText) -> SupervisedText:
        """Write one row as the text the model is trained on.

        A conversation goes through the tokenizer's chat template, whatever that writes (a beginning-of-sequence
        token, say) being all there is. Plain text gets the tokenizer's own beginning, and `stop_token` at its end.

        Raises:
            InvalidDataset: the chat template refuses the conversation, leaves a part of it out, or does not show
                where an answer begins.
        """
        rendered = self._render_plain_text(row) if isinstance(row, PlainText) else self._render_conversation(row)
        try:
            rendered.text.encode()
        except UnicodeEncodeError as error:
            raise InvalidDataset(
                f"has half of a surrogate pair, {rendered.text[error.start]!r}, which is no text"
            ) from error
        spans = rendered.spans[-1:] if self.mask_history else rendered.spans
        return rendered._replace(spans=[(0, spans[-1][1])] if spans and self.train_on_prompt else spans)

    def _render_conversation(self, row: Conversation) -> SupervisedText:
        text = self._write(row.messages, row.tools)
        _check_nothing_is_lost(text, row)
        found = [
            self._find_turn(row, index, text)
            for index, message in enumerate(row.messages)
            if message["role"] == "assistant" and index >= row.supervised_from
        ]
        spans = [span for span in found if span]
        if found and not spans:
            raise InvalidDataset(
                "the chat template writes the messages before an answer differently once it is there, so a prompt "
                "would not look as in training; choose another template_name"
            )
        return SupervisedText(text, spans, len(found) - len(spans))

    def _find_turn(self, row: Conversation, index: int, text: str) -> tuple[int, int] | None:
        """Where the answer `messages[index]` stands in the whole text; None if it is written otherwise there.

        It begins where the prompt of inference ends: after what the template writes for the messages before it with
        `add_generation_prompt`. It ends with the first stop token after its content.
        """
        messages, answer = row.messages, row.messages[index]
        is_last = index == len(messages) - 1
        until = text if is_last else self._write(messages[: index + 1], row.tools)
        content = answer["content"].strip()
        if index:
            prompt = self._write(messages[:index], row.tools, add_generation_prompt=True)
            if not text.startswith(prompt):
                return None
            start = len(prompt)
        else:
            start = max(until.find(content), 0)
        at = until.find(content, start)
        end = until.find(self.stop_token, at + len(content)) if at >= 0 else until.rfind(self.stop_token, start)
        if end < 0:
            raise InvalidDataset(
                f"messages[{index}]: the chat template does not end this answer with {self.stop_token}; "
                "choose another template_name"
            )
        end += len(self.stop_token)
        if not text.startswith(until[:end]):
            return None
        _check_calls(answer, index, text[start:end])
        return start, end

    def _write(self, messages: list[Message], tools: list[Tool] | None, add_generation_prompt: bool = False) -> str:
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise InvalidDataset(f"the chat template refuses this conversation: {error}") from error
        except Exception as error:  # the template is code of the model's makers and may fail in any way
            reason = f"{type(error).__name__}: {error}"
            raise InvalidDataset(f"the chat template can't write this conversation: {reason}") from error
        return str(text)

    def _render_plain_text(self, row: PlainText) -> SupervisedText:
        bos = str(self.tokenizer.bos_token or "")
        is_due = begins_with_bos(self.tokenizer) and not (row.prompt + row.completion).startswith(bos)
        prompt = bos + row.prompt if is_due else row.prompt
        ends = row.completion.endswith(self.stop_token)
        completion = row.completion if ends else row.completion + self.stop_token
        return SupervisedText(prompt + completion, [(len(prompt), len(prompt) + len(completion))])


def _check_calls(answer: Message, index: int, written: str) -> None:
    """Raises InvalidDataset when the template wrote an answer that calls functions, but not all of it."""
    if "tool_calls" not in answer:
        return
    if not all(call["function"]["name"] in written for call in answer["tool_calls"]):
        raise InvalidDataset(
            f"messages[{index}]: the chat template does not write calls of functions; choose template_name "
            f"{CALLING_TEMPLATES}"
        )
    if answer["content"].rpartition("</think>")[2].strip() not in written:
        raise InvalidDataset(f"messages[{index}]: the chat template leaves out the text beside the call of a function")


def _check_nothing_is_lost(text: str, row: Conversation) -> None:
    """Many templates pass over roles and tools they do not know. Raises InvalidDataset when this one did."""
    for index, message in enumerate(row.messages):
        content = message["content"].strip()
        as_json = json.dumps(content, ensure_ascii=False)[1:-1]  # Llama 3.1 writes the result of a call so
        if message["role"] != "assistant" and content not in text and as_json not in text:
            raise InvalidDataset(
                f"messages[{index}]: the chat template leaves out this {message['role']} message; "
                "choose another template_name"
            )
    for tool in row.tools or []:
        if tool["function"]["name"] not in text:
            raise InvalidDataset(f"the chat template does not write tools; choose template_name {CALLING_TEMPLATES}")
