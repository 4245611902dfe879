"""Calls of functions over HTTP, by OpenAI's own client, of a model that has learned to call them."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import openai
import pytest
from openai.types.chat import ChatCompletion

from jobs.settings import Settings
from tests.api.openai_client import connected
from tests.calling_model import ANSWER, ARGUMENTS, QUESTION, RESULTS, TEXT, TOOLS, save_calling_model

pytestmark = [
    pytest.mark.stack,
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing:FutureWarning"),
]


@pytest.fixture(scope="module")
def model(stack: Settings) -> str:
    """The name of a base model in the stack's model root."""
    name = f"org/calls-{uuid4().hex[:8]}"
    save_calling_model(stack.model_root / name)
    return name


@pytest.fixture(scope="module")
def client(stack: Settings) -> Iterator[openai.OpenAI]:
    with connected(stack.model_copy(update={"dtype": "none"})) as client:
        yield client


def ask(client: openai.OpenAI, model: str, messages: list[Any], **options: Any) -> ChatCompletion:
    options = {"tools": TOOLS, "temperature": 0, "max_tokens": 200} | options
    return client.chat.completions.create(model=model, messages=messages, **options)


def test_a_model_calls_functions_and_answers_with_their_results(client, model):
    asked = ask(client, model, [QUESTION], tool_choice="auto", parallel_tool_calls=True).choices[0]
    assert (asked.finish_reason, asked.message.content) == ("tool_calls", TEXT)
    calls = asked.message.tool_calls
    assert [call.function.name for call in calls] == ["find_hours", "find_hours"]
    assert [json.loads(call.function.arguments) for call in calls] == [*ARGUMENTS]
    assert len({call.id for call in calls}) == 2

    results = [
        {"role": "tool", "tool_call_id": call.id, "content": text} for call, text in zip(calls, RESULTS, strict=True)
    ]
    for message in (asked.message, asked.message.model_dump()):
        (answer,) = ask(client, model, [QUESTION, message, *results]).choices
        assert (answer.finish_reason, answer.message.content, answer.message.tool_calls) == ("stop", ANSWER, None)


def test_calls_are_streamed(client, model):
    with client.chat.completions.stream(
        model=model, messages=[QUESTION], tools=TOOLS, temperature=0, max_tokens=200
    ) as stream:
        kinds = [event.type for event in stream]
        whole = stream.get_final_completion().choices[0]
    assert kinds.count("tool_calls.function.arguments.done") == 2
    assert (whole.finish_reason, whole.message.content) == ("tool_calls", TEXT)
    assert [json.loads(call.function.arguments) for call in whole.message.tool_calls] == [*ARGUMENTS]


def test_without_tools_or_in_the_middle_of_a_call_the_answer_is_text(client, model):
    whole = ask(client, model, [QUESTION], tool_choice="none")
    assert whole.usage.prompt_tokens < 100  # the functions are no part of the prompt
    assert whole.choices[0].message.tool_calls is None
    (cut,) = ask(client, model, [QUESTION], max_tokens=40).choices
    assert (cut.finish_reason, cut.message.tool_calls) == ("length", None)
    assert cut.message.content.startswith(TEXT + "\n<tool_call>")


def test_arguments_that_are_no_object_are_refused(client, model):
    wrong = {"id": "a", "type": "function", "function": {"name": "find_hours", "arguments": "[1]"}}
    with pytest.raises(openai.BadRequestError, match="arguments must be an object") as caught:
        ask(client, model, [QUESTION, {"role": "assistant", "content": None, "tool_calls": [wrong]}])
    assert caught.value.param == "messages[1]"
