"""Responses of OpenAI's chat completions and completions, whole and in chunks."""

from typing import Literal

from pydantic import Field

from tuneyard_wire.response import Response, with_example

FinishReason = Literal["stop", "length", "tool_calls"]
CompletionReason = Literal["stop", "length"]
_USAGE = {"prompt_tokens": 12, "completion_tokens": 9, "total_tokens": 21}
_MODEL = {"created": 1796000000, "model": "handbook@3"}


class Usage(Response):
    """Counts of tokens: a prompt counts once, whatever `n` is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(Response):
    """One of the most likely tokens."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(TopLogprob):
    """A token of an answer, with the most likely ones at its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Response):
    """Log probabilities of an answer's tokens."""

    content: list[TokenLogprob] | None = None


class ToolCallFunction(Response):
    """The function of a call."""

    name: str
    arguments: str = Field(description="A JSON object, as text.")


class ToolCall(Response):
    """A call of a function that the model asks for."""

    id: str
    type: Literal["function"] = "function"
    function: ToolCallFunction


class ToolCallDelta(ToolCall):
    """A call in a stream, which is sent whole."""

    index: int = Field(description="Number of the call in its answer.")


class AnswerMessage(Response):
    """An answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None = Field(description="Null if the answer is calls alone.")
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Response):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason


class ChatCompletion(Response):
    """The answers to a chat."""

    model_config = with_example(
        id="chatcmpl-5b1c0c1f3a0e4d7f9f2d6c6f3a8e9b10",
        object="chat.completion",
        **_MODEL,
        choices=[
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "The office opens at eight.",
                    "refusal": None,
                    "tool_calls": None,
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        usage=_USAGE,
    )

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str = Field(description="The exact model: `NAME@VERSION` where the request named `NAME`.")
    choices: list[ChatChoice]
    usage: Usage


class Delta(Response):
    """What is new of an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Response):
    """What is new of one of the answers."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Response):
    """An event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class CompletionLogprobs(Response):
    """Log probabilities of a completion's tokens."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(Response):
    """One of the completions: `n` for each prompt, in their order."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: CompletionReason | None = None


class Completion(Response):
    """The completions of prompts, or an event of a stream of them."""

    model_config = with_example(
        id="cmpl-5b1c0c1f3a0e4d7f9f2d6c6f3a8e9b10",
        object="text_completion",
        **_MODEL,
        choices=[{"index": 0, "text": " opens at eight.", "logprobs": None, "finish_reason": "length"}],
        usage=_USAGE,
    )

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
