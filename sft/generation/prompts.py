"""The token ids of a prompt, as the model's tokenizer and chat template write them."""

from typing import TYPE_CHECKING, Any

from sft.confinement import step
from sft.data.messages import Tool
from sft.errors import InvalidPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_chat(
    tokenizer: "PreTrainedTokenizerBase", model: str, messages: list[dict[str, Any]], tools: list[Tool] | None = None
) -> list[int]:
    """Write messages with the chat template, followed by the begin of an answer.

    Args:
        tools: functions that may be called.

    Raises:
        InvalidPrompt: there is no template, or it rejects the messages.
    """
    if not tokenizer.chat_template:
        raise InvalidPrompt(f"messages: the tokenizer of {model} has no chat template; use /v1/completions")
    size = sum(len(str(message.get("content"))) for message in messages)
    options: dict[str, Any] = {"tools": tools} if tools else {}
    with step(f"messages: writing them with the chat template of {model}", size):
        try:
            found: Any = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, **options
            )
        except MemoryError:
            raise
        except Exception as error:  # the template is a program that comes with the model
            reason = " ".join(str(error).split())[:300]
            raise InvalidPrompt(f"messages: the chat template of {model} rejects them: {reason}") from error
    return list(found["input_ids"])


def write_text(tokenizer: "PreTrainedTokenizerBase", model: str, text: str) -> list[int]:
    """Write text with the tokenizer's own special tokens. Raises InvalidPrompt if nothing is left of it."""
    with step(f"prompt: tokenizing it for {model}", len(text)):
        ids: list[int] = list(tokenizer(text)["input_ids"])
    if not ids:
        raise InvalidPrompt("prompt: must not be empty")
    return ids
