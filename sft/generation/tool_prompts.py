"""What a chat template does with functions that a model may call, their calls and results."""

from typing import TYPE_CHECKING, Any

from sft.confinement import step
from sft.data.fields import Fields
from sft.data.formats import Conversation
from sft.data.messages import Message, Tool, read_messages, read_tools
from sft.data.rendering_checks import CALLING_TEMPLATES, check_calls, check_nothing_is_lost
from sft.errors import InvalidDataset, InvalidPrompt
from sft.generation.call_forms import FORMS, FunctionCall
from sft.generation.calls import CallReader
from sft.generation.text import TextReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION: Message = {"role": "user", "content": "qzquestion"}
CALL = FunctionCall("qzcall", '{"qzname": "qzvalue"}')
FUNCTION: Tool = {
    "type": "function",
    "function": {
        "name": CALL.name,
        "description": "qzwhat",
        "parameters": {"type": "object", "properties": {"qzname": {"type": "string"}}, "required": ["qzname"]},
    },
}
ANSWER: Message = {  # an id of this length is the only one that Mistral's templates take
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "type": "function",
            "id": "qzcall123",
            "function": {"name": CALL.name, "arguments": {"qzname": "qzvalue"}},
        }
    ],
}


def has_tools(messages: list[Message], tools: list[Tool] | None) -> bool:
    """Whether functions, calls or results are to be written."""
    return bool(tools) or any(message.get("tool_calls") or message["role"] == "tool" for message in messages)


def read_tool_chat(messages: list[Any], tools: list[Any] | None) -> tuple[list[Message], list[Tool] | None]:
    """Messages and functions in the form that chat templates read. Raises InvalidPrompt."""
    try:
        return read_messages(messages, "messages"), read_tools(Fields({"tools": tools}))
    except InvalidDataset as error:
        raise InvalidPrompt(str(error)) from error


def check_tool_chat(
    tokenizer: "PreTrainedTokenizerBase", model: str, messages: list[Message], tools: list[Tool] | None
) -> None:
    """Raise InvalidPrompt if the chat template leaves functions, calls or results out: many ignore them."""

    def write(messages: list[Message], tools: list[Tool] | None) -> str:
        return _write(tokenizer, messages, tools)

    size = len(str(messages)) + len(str(tools))
    with step(f"tools: writing them with the chat template of {model}", size):
        try:
            text = write(messages, tools)
            check_nothing_is_lost(text, Conversation(messages, tools=tools), write)
            for index, message in enumerate(messages):
                check_calls(message, index, text)
        except InvalidDataset as error:
            reason = str(error).partition("; choose")[0].replace("the chat template", f"the chat template of {model}")
            field = "" if reason.startswith("messages") else "tools: "
            raise InvalidPrompt(
                f"{field}{reason}; leave them out, or ask a model whose template writes them, such as an adapter "
                f"trained with template_name {CALLING_TEMPLATES}"
            ) from error


def find_form(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """The name of the form (`FORMS`) in which the chat template writes a call; None if it is none of them."""
    with step():
        try:
            prompt = _write(tokenizer, [QUESTION], [FUNCTION], add_generation_prompt=True)
            text = _write(tokenizer, [QUESTION, ANSWER], [FUNCTION])
        except InvalidDataset:
            return None
        pairs = enumerate(zip(prompt, text, strict=False))
        written = text[next((place for place, (one, other) in pairs if one != other), len(prompt)) :]
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    for name, form in FORMS.items():
        reader = TextReader(tokenizer, kept=form.tokens)
        answer = "".join([*map(reader.add, ids), reader.finish()])
        if CallReader(form, [FUNCTION]).read(answer, is_last=True)[1] == [CALL]:
            return name
    return None


def _write(
    tokenizer: "PreTrainedTokenizerBase", messages: list[Message], tools: list[Tool] | None, **options: Any
) -> str:
    """The text of the chat. Raises InvalidDataset, as the checks of rows expect it."""
    try:
        found: Any = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, **options)
    except MemoryError:
        raise
    except Exception as error:  # the template is a program that comes with the model
        reason = " ".join(str(error).split())[:300]
        raise InvalidDataset(f"messages: the chat template rejects them: {reason}") from error
    return str(found)
