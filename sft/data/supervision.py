"""Finds the characters of a training text that are supervised: assistant turns with their end-of-turn token."""

from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from sft.chat.steady import write_steadily
from sft.chat.templates import begins_with_bos
from sft.confinement import step
from sft.data.formats import Conversation, PlainText
from sft.data.messages import REASONING, Message, Tool
from sft.data.rendering_checks import check_calls, check_nothing_is_lost, find_unwritten
from sft.data.rows import check_text
from sft.errors import InvalidDataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SupervisedText(NamedTuple):
    """A text and its supervised character ranges `[start, end)`, in order.

    `rewritten` counts earlier answers that are not supervised, because the chat template writes them differently than
    the model would generate them (Qwen3's removes their reasoning). `empty` counts supervised answers without text;
    `ignored` names fields of the row that the reader or the template does not use.
    """

    text: str
    spans: list[tuple[int, int]]
    rewritten: int = 0
    empty: int = 0
    ignored: frozenset[str] = frozenset()


class Renderer(NamedTuple):
    """Renders rows with a tokenizer whose template `apply_template` has set; `stop_token` ends an answer.

    With `train_on_prompt` everything up to the end of the last answer is supervised, with `mask_history` the last
    answer only. `varying` collects the parts of the template that change from day to day (`sft.chat.steady`).
    """

    tokenizer: "PreTrainedTokenizerBase"
    stop_token: str
    train_on_prompt: bool = False
    mask_history: bool = False
    varying: set[str] | None = None

    def render(self, row: Conversation | PlainText) -> SupervisedText:
        """Render one row as the text the model is trained on.

        A conversation is rendered by the chat template, and nothing is added to it, no beginning-of-sequence token
        either. Plain text gets the tokenizer's beginning-of-sequence token, and `stop_token` at its end.

        Raises:
            InvalidDataset: the chat template refuses the conversation, leaves out a part of it, or does not show
                where an answer begins.
        """
        rendered = self._render_plain_text(row) if isinstance(row, PlainText) else self._render_conversation(row)
        check_text(rendered.text)
        return rendered

    def _render_conversation(self, row: Conversation) -> SupervisedText:
        row = row._replace(messages=[name_reasoning(message) for message in row.messages])
        text = self._write(row.messages, row.tools)
        check_nothing_is_lost(text, row, self._write)
        answers = [
            index
            for index, message in enumerate(row.messages)
            if message["role"] == "assistant" and index >= row.supervised_from
        ]
        learned = [index for index in answers if index not in row.read_only]
        found = {index: self._find_turn(row, index, text) for index in learned}
        spans = {index: span for index, span in found.items() if span}
        if found and not spans:
            raise InvalidDataset(
                "the chat template writes the messages before an answer differently once it is there, so a prompt "
                "would not look as in training; choose another template_name"
            )
        if self.mask_history:
            spans = {} if answers[-1:] != learned[-1:] else dict(list(spans.items())[-1:])
        empty = sum(_is_empty(row.messages[index]) for index in spans)
        return SupervisedText(
            text,
            self._add_prompt(row, text, list(spans.values())),
            len(found) - sum(span is not None for span in found.values()),
            empty,
            row.ignored | find_unwritten(text, row, lambda messages: self._write(messages, row.tools)),
        )

    def _add_prompt(self, row: Conversation, text: str, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """With `train_on_prompt`: everything up to the last supervised answer's end, except turns of weight 0."""
        if not spans or not self.train_on_prompt:
            return spans
        end, start, learned = spans[-1][1], 0, []
        for index in sorted(row.read_only):
            span = self._find_turn(row, index, text)
            if span is None:
                raise InvalidDataset(
                    f"messages[{index}] has weight 0, but the chat template does not show where it begins and ends; "
                    "set train_on_prompt to false"
                )
            if span[0] < end:
                learned.append((start, span[0]))
                start = span[1]
        return [*learned, (start, end)]

    def _find_turn(self, row: Conversation, index: int, text: str) -> tuple[int, int] | None:
        """Character range of the answer `messages[index]` in the whole text; None if it is written differently there.

        It starts where the prompt at inference ends: after the messages before it, rendered with
        `add_generation_prompt`. A first message has none before it: it starts after the text that opens an answer
        elsewhere, so that a default system prompt of the template is not supervised. It ends with the first stop
        token after its content.
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
            opening = self._find_opening(row.tools)
            start = until.find(opening) + len(opening)
            if not opening or start < len(opening):
                return None
            if not answer["content"][:1].isspace():
                start = len(until) - len(until[start:].lstrip())
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
        check_calls(answer, index, text[start:end])
        return start, end

    def _find_opening(self, tools: list[Tool] | None) -> str:
        """The text that `add_generation_prompt` adds to a prompt; empty if it adds none."""
        question: list[Message] = [{"role": "user", "content": "?"}]
        without, with_opening = (self._write(question, tools, add_generation_prompt=asks) for asks in (False, True))
        return with_opening[len(without) :] if with_opening.startswith(without) else ""

    def _write(self, messages: list[Message], tools: list[Tool] | None, add_generation_prompt: bool = False) -> str:
        try:
            with step():  # a long conversation is rendered once for each answer
                return write_steadily(
                    self.tokenizer, messages, self.varying, tools=tools, add_generation_prompt=add_generation_prompt
                )
        except TemplateError as error:
            raise InvalidDataset(f"the chat template refuses this conversation: {error}") from error
        except MemoryError:
            raise
        except Exception as error:  # the template comes with the model and may fail in any way
            reason = f"{type(error).__name__}: {error}"
            raise InvalidDataset(f"the chat template can't write this conversation: {reason}") from error

    def _render_plain_text(self, row: PlainText) -> SupervisedText:
        bos = str(self.tokenizer.bos_token or "")
        is_due = begins_with_bos(self.tokenizer) and not (row.prompt + row.completion).startswith(bos)
        prompt = bos + row.prompt if is_due else row.prompt
        ends = row.completion.endswith(self.stop_token)
        completion = row.completion if ends else row.completion + self.stop_token
        start = 0 if self.train_on_prompt else len(prompt)
        empty = int(not row.completion.strip())
        return SupervisedText(prompt + completion, [(start, len(prompt + completion))], 0, empty, row.ignored)


def name_reasoning(message: Message) -> Message:
    """Copy a message's reasoning to every field name that templates read: each reads another one."""
    if "reasoning_content" not in message:
        return message
    return message | dict.fromkeys(REASONING, message["reasoning_content"])


def _is_empty(answer: Message) -> bool:
    return not (answer["content"].strip() or "tool_calls" in answer or "reasoning_content" in answer)
