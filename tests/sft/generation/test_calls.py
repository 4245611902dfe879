"""Calls of functions in answers: read in the form that the chat template writes, and else text as it was."""

import json

import pytest

from sft.chat.named_templates import TEMPLATES
from sft.chat.templates import apply_template
from sft.errors import InvalidPrompt
from sft.generation.call_forms import FORMS, FunctionCall
from sft.generation.calls import CallReader
from sft.generation.text import TextReader
from sft.generation.tool_prompts import ANSWER, FUNCTION, QUESTION, check_tool_chat, find_form, read_tool_chat
from tests.tiny_models import build_tokenizer

CALLING = {"qwen": "tags", "qwen3": "tags", "llama3": "llama", "mistral": "mistral", "deepseek3": "deepseek"}
TURNS = ["<｜User｜>", "<｜Assistant｜>"]  # noqa: RUF001
SPECIAL = ["<s>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "[TOOL_CALLS]", *TURNS]
ONE = '<tool_call>\n{"name": "a", "arguments": {"b": "ü"}}\n</tool_call>'
TYPED = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"n": {"type": "integer"}}}}}]
XML = "<tool_call>\n<function=f>\n<parameter=n>\n7\n</parameter>\n</function>\n</tool_call>"
DEEPSEEK = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>a\n```json\n{}\n```<｜tool▁call▁end｜>"  # noqa: RUF001
BEGIN, END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"  # noqa: RUF001


def make_tokenizer(template: str):
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*SPECIAL, "<|im_start|>", "<|im_end|>"]})
    tokenizer.bos_token = "<s>"
    apply_template(tokenizer, template)
    return tokenizer


def read(text: str, form: str = "tags", tools=(), size: int = 1) -> tuple[str, list[FunctionCall]]:
    """Text and calls of an answer that comes in pieces."""
    reader = CallReader(FORMS[form], list(tools))
    pieces = [reader.read(text[start : start + size]) for start in range(0, len(text), size)]
    pieces.append(reader.read("", is_last=True))
    return "".join(text for text, _ in pieces), [call for _, calls in pieces for call in calls]


@pytest.mark.parametrize(("template", "form"), CALLING.items())
def test_the_form_is_that_of_the_template(template, form):
    tokenizer = make_tokenizer(template)
    assert find_form(tokenizer) == form
    chat = [QUESTION, ANSWER, {"role": "tool", "content": "as expected it is here", "tool_call_id": "qzcall123"}]
    check_tool_chat(tokenizer, "m", chat, [FUNCTION])


@pytest.mark.parametrize("template", ["default", "chatml", "vicuna", "zephyr"])
def test_a_template_without_functions_is_refused(template):
    tokenizer = make_tokenizer(template)
    assert find_form(tokenizer) is None
    with pytest.raises(InvalidPrompt, match=r"tools: the chat template of m does not write tools.*qwen"):
        check_tool_chat(tokenizer, "m", [QUESTION], [FUNCTION])
    with pytest.raises(InvalidPrompt, match=r"messages\[1\]: the chat template of m does not write calls") as caught:
        check_tool_chat(tokenizer, "m", [QUESTION, ANSWER], None)
    assert caught.value.param == "messages[1]"


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("form", "text", "content", "calls"),
    [
        ("tags", f"I look.\n{ONE}\n{ONE}\n", "I look.", [FunctionCall("a", '{"b": "ü"}')] * 2),
        ("tags", f"{ONE} Then.  ", "Then.  ", [FunctionCall("a", '{"b": "ü"}')]),
        ("tags", ONE.removesuffix("</tool_call>"), "", [FunctionCall("a", '{"b": "ü"}')]),
        ("tags", XML, "", [FunctionCall("f", '{"n": 7}')]),
        ("mistral", '[TOOL_CALLS] [{"name": "a", "arguments": {}, "id": "x"}]', "", [FunctionCall("a", "{}")]),
        ("llama", '\n{"name": "a", "parameters": {"b": 1}}', "", [FunctionCall("a", '{"b": 1}')]),
        ("deepseek", f"So.{BEGIN}{DEEPSEEK}\n{DEEPSEEK}{END}", "So.", [FunctionCall("a", "{}")] * 2),
    ],
)
def test_calls_are_read_from_pieces(form, text, content, calls, size):
    assert read(text, form, TYPED, size) == (content, calls)


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("tags", "  no call \n\n"),
        ("tags", "a <tool_call>{oops}</tool_call> b <tool_cal"),
        ("tags", "<tool_call>"),
        ("tags", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
        ("tags", '<tool_call>{"name": "a", "arguments": [1]}</tool_call>'),
        ("tags", '<tool_call>{"name": "a", "arguments": {"b": NaN}}</tool_call>'),
        ("tags", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>'),
        ("tags", "<tool_call>" + "[" * 5000 + "</tool_call>"),
        ("tags", "<tool_call><function=f><parameter=n>7</parameter></tool_call>"),
        ("tags", XML.removesuffix("\n</parameter>\n</function>\n</tool_call>")),
        ("mistral", "[TOOL_CALLS] find(1)"),
        ("llama", '{"x": 1} '),
        ("llama", 'See {"name": "a", "parameters": {}}'),
        ("deepseek", f"{BEGIN}{DEEPSEEK} and more{END}"),
    ],
)
def test_what_is_no_call_stays_text(form, text, size):
    assert read(text, form, TYPED, size) == (text, [])


def test_text_is_not_held_back_longer_than_needed():
    reader = CallReader(FORMS["tags"], [])
    assert [reader.read(text)[0] for text in ("Two ", "words <to", "ps> and")] == ["Two", " words", " <tops> and"]


def test_special_tokens_of_calls_are_part_of_the_text():
    tokenizer = make_tokenizer("mistral")
    ids = tokenizer("[TOOL_CALLS] [hello]<|im_end|>")["input_ids"]
    for kept, text in (((), " [hello]"), (FORMS["mistral"].tokens, "[TOOL_CALLS] [hello]")):
        reader = TextReader(tokenizer, kept=kept)
        assert "".join([*map(reader.add, ids), reader.finish()]) == text


def test_arguments_become_objects_as_templates_take_them():
    calls = [{"id": "a", "type": "function", "function": {"name": "f", "arguments": json.dumps({"n": 1})}}]
    messages, tools = read_tool_chat([{"role": "assistant", "content": "", "tool_calls": calls}], TYPED)
    assert messages[0]["tool_calls"][0]["function"]["arguments"] == {"n": 1}
    assert tools == TYPED
    assert "tool_call" in TEMPLATES["qwen"].jinja
