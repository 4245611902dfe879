"""Requests for answers, in the fields of OpenAI's chat completions and completions.

A field that this service does not have is rejected, unless it has the value that changes nothing.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from api.openai.chat_messages import ChatMessage
from api.openai.tools import MOST_TOOLS, ToolDefinition
from sft.config import LIST_ENTRIES

MOST_ANSWERS = 8
MOST_PROMPTS = 8
MOST_TOKENS = 131_072
MOST_LOGPROBS = 20
MOST_STOPS = 4


def check_number(value: Any) -> Any:
    """4.0 is an integer too; text and booleans are no numbers."""
    if isinstance(value, str | bool):
        raise ValueError("must be a number")
    return value


def check_tool_choice(value: Any) -> Any:
    """Say why a call can't be forced."""
    if value == "required" or isinstance(value, dict):
        raise ValueError("must be auto or none, as what a model writes is not forced into the form of a call")
    return value


def check_parallel_calls(value: Any) -> Any:
    """Say why calls can't be limited to one."""
    if value is False:
        raise ValueError("must be true or left out, as the number of calls that a model writes is not limited")
    return value


Number = Annotated[float, Field(strict=True)]
# The limits stand beside the integer, so that the OpenAPI document has them.
Tokens = Annotated[int, Field(gt=0, le=MOST_TOKENS), BeforeValidator(check_number)]
Answers = Annotated[int, Field(ge=1, le=MOST_ANSWERS), BeforeValidator(check_number)]
Logprobs = Annotated[int, Field(ge=0, le=MOST_LOGPROBS), BeforeValidator(check_number)]
Seed = Annotated[int, Field(ge=-(2**53), le=2**53), BeforeValidator(check_number)]  # exact in any JSON parser
One = Annotated[int, Field(ge=1, le=1), BeforeValidator(check_number)]
Flag = Annotated[bool, Field(strict=True)]
NoObject = Annotated[dict[str, JsonValue], Field(max_length=0)]
ToolChoice = Annotated[Literal["none", "auto"], BeforeValidator(check_tool_choice)]
ParallelCalls = Annotated[Literal[True], BeforeValidator(check_parallel_calls)]
Hint = Annotated[str, Field(max_length=1000)]
Label = Annotated[str, Field(max_length=512)]
Labels = Annotated[dict[Annotated[str, Field(max_length=64)], Label], Field(max_length=16)]
StopText = Annotated[str, Field(min_length=1, max_length=200)]
TextList = Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    include_usage: Flag = Field(False, description="Send the counts of tokens before the end.")
    include_obfuscation: Flag | None = Field(None, description="Accepted, and without effect.")


class AnswerRequest(BaseModel):
    """What both have."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    model: str = Field(
        min_length=1,
        max_length=500,
        description="A base model, `NAME@VERSION` of an adapter, `NAME` for its latest version, or a checkpoint as "
        "`JOB_ID:ckpt-step-N`.",
    )
    temperature: Number | None = Field(None, ge=0, le=2, description="0 takes the most likely token; 1 if left out.")
    top_p: Number | None = Field(None, gt=0, le=1)
    max_tokens: Tokens | None = Field(
        None, description="Tokens of each answer; 512, or what the context leaves, if left out."
    )
    stop: StopText | Annotated[list[StopText], Field(max_length=MOST_STOPS)] | None = Field(
        None, description="Texts that end an answer; they are not part of it."
    )
    seed: Seed | None = Field(None, description="The same seed draws the same answers.")
    n: Answers | None = Field(None, description="Number of answers to each prompt.")
    stream: Flag | None = Field(None, description="Send server-sent events.")
    stream_options: StreamOptions | None = None
    frequency_penalty: Annotated[Number, Field(ge=0, le=0)] | None = Field(None, description="0 only.")
    presence_penalty: Annotated[Number, Field(ge=0, le=0)] | None = Field(None, description="0 only.")
    user: Hint | None = Field(None, description="Accepted, and without effect.")
    logit_bias: NoObject | None = Field(None, description="Empty only.")
    metadata: Labels | None = Field(None, description="Accepted, and without effect: no answer is stored.")
    store: Literal[False] | None = Field(None, description="False only.")
    service_tier: Literal["auto", "default"] | None = Field(None, description="Accepted, and without effect.")

    @property
    def answers(self) -> int:
        """Number of answers to each prompt."""
        return self.n or 1

    def sampling(self, logprobs: int | None) -> dict[str, Any]:
        """The fields of `sft.generation.sampling.Sampling`."""
        temperature = 1.0 if self.temperature is None else self.temperature
        return {"temperature": temperature, "top_p": self.top_p or 1.0, "seed": self.seed, "logprobs": logprobs}

    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class ResponseFormat(BaseModel):
    """The form of an answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text"]


# What fields may not be together, for the OpenAPI document; `ChatRequest` explains it.
_EXCLUSIONS: list[JsonValue] = [
    {
        "not": {
            "required": ["top_logprobs"],
            "properties": {"top_logprobs": {"type": "integer"}, "logprobs": {"enum": [False, None]}},
        }
    },
    {
        "not": {
            "required": ["max_tokens", "max_completion_tokens"],
            "properties": {"max_tokens": {"type": "integer"}, "max_completion_tokens": {"type": "integer"}},
        }
    },
]


class ChatRequest(AnswerRequest):
    """`POST /v1/chat/completions`."""

    model_config = ConfigDict(json_schema_extra={"allOf": _EXCLUSIONS})

    messages: list[ChatMessage] = Field(min_length=1, max_length=LIST_ENTRIES)
    max_completion_tokens: Tokens | None = Field(None, description="As `max_tokens`.")
    logprobs: Flag | None = Field(None, description="Send the log probability of each token.")
    top_logprobs: Logprobs | None = Field(None, description="Most likely tokens to send for each; needs `logprobs`.")
    tools: Annotated[list[ToolDefinition], Field(max_length=MOST_TOOLS)] | None = Field(
        None, description="Functions that the model may call, if its chat template writes them."
    )
    tool_choice: ToolChoice | None = Field(
        None, description="`auto`, or `none` to leave `tools` out; answers can't be forced to call a function."
    )
    parallel_tool_calls: ParallelCalls | None = Field(None, description="True only.")
    response_format: ResponseFormat | None = Field(None, description="Text only.")
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = Field(None, description="Text only.")
    safety_identifier: Hint | None = Field(None, description="Accepted, and without effect.")
    prompt_cache_key: Hint | None = Field(None, description="Accepted, and without effect.")
    prompt_cache_retention: Hint | None = Field(None, description="Accepted, and without effect.")
    audio: None = None
    function_call: None = None
    functions: None = None
    moderation: None = None
    prediction: None = None
    reasoning_effort: None = None
    verbosity: None = None
    web_search_options: None = None

    @model_validator(mode="after")
    def _check(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs: needs logprobs to be true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_completion_tokens: is another name of max_tokens; give one of them")
        return self

    def to_work(self) -> dict[str, Any]:
        """The request of the generation process."""
        tools = [tool.to_plain() for tool in self.tools or ()] if self.tool_choice != "none" else []
        return {
            "messages": [message.to_plain() for message in self.messages],
            "tools": tools,
            "prompts": None,
            "n": self.answers,
            "max_tokens": self.max_completion_tokens or self.max_tokens,
            "stop": self.stops(),
            "sampling": self.sampling((self.top_logprobs or 0) if self.logprobs else None),
        }


class CompletionRequest(AnswerRequest):
    """`POST /v1/completions`."""

    prompt: str | TextList = Field(description="A text, or several.")
    logprobs: Logprobs | None = Field(None, description="Most likely tokens to send for each.")
    echo: Literal[False] | None = Field(None, description="False only.")
    best_of: One | None = Field(None, description="1 only.")
    suffix: None = None

    def to_work(self) -> dict[str, Any]:
        """The request of the generation process."""
        return {
            "messages": None,
            "prompts": [self.prompt] if isinstance(self.prompt, str) else self.prompt,
            "n": self.answers,
            "max_tokens": self.max_tokens,
            "stop": self.stops(),
            "sampling": self.sampling(self.logprobs),
        }
