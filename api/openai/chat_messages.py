"""The messages of a chat, by their role."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, JsonValue, Tag

from api.openai.tools import CallId, MessageCall

MOST_CALLS = 128
ROLES = ("system", "developer", "user", "assistant", "tool")
NoList = Annotated[list[JsonValue], Field(max_length=0)]


def check_role(value: Any) -> Any:
    """Name all roles: the messages of other kinds have theirs."""
    if value not in ROLES:
        raise ValueError(f"must be {', '.join(ROLES[:-1])} or {ROLES[-1]}")
    return value


class TextContent(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["text"]
    text: str


Content = str | Annotated[list[TextContent], Field(min_length=1)]


class AnyMessage(BaseModel):
    """What messages of all roles have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(max_length=64)] | None = Field(None, description="Accepted, and without effect.")


class TextMessage(AnyMessage):
    """An instruction or a question."""

    role: Annotated[Literal["system", "developer", "user"], BeforeValidator(check_role)]
    content: Content

    def to_plain(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": join_content(self.content)}


class _Answer(AnyMessage):
    """What an answer of OpenAI's client has when it is sent back as a message."""

    role: Literal["assistant"]
    refusal: None = None
    annotations: NoList | None = Field(None, description="Empty only.")
    audio: None = None
    function_call: None = None


class EarlierAnswer(_Answer):
    """An earlier answer."""

    content: Content
    tool_calls: NoList | None = Field(None, description="Empty, or calls.")

    def to_plain(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        return {"role": self.role, "content": join_content(self.content)}


class CallMessage(_Answer):
    """An earlier answer that calls functions."""

    content: Content | None = None
    tool_calls: Annotated[list[MessageCall], Field(min_length=1, max_length=MOST_CALLS)]

    def to_plain(self) -> dict[str, Any]:
        """The message as `sft.data.messages` reads it."""
        calls = [call.model_dump() for call in self.tool_calls]
        return {"role": self.role, "content": join_content(self.content), "tool_calls": calls}


class ToolMessage(AnyMessage):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: CallId

    def to_plain(self) -> dict[str, Any]:
        """The message as chat templates take it."""
        return {"role": self.role, "content": join_content(self.content), "tool_call_id": self.tool_call_id}


def join_content(content: str | list[TextContent] | None) -> str:
    """The text of a message."""
    return content if isinstance(content, str) else "".join(part.text for part in content or ())


def choose_kind(value: Any) -> str:
    """The kind of a message, in the form of pydantic's names of alternatives, which errors leave out."""
    fields = value if isinstance(value, dict) else getattr(value, "__dict__", {})
    if fields.get("role") == "assistant":
        return "union[call]" if fields.get("tool_calls") else "union[answer]"
    return "union[tool]" if fields.get("role") == "tool" else "union[text]"


ChatMessage = Annotated[
    Annotated[TextMessage, Tag("union[text]")]
    | Annotated[EarlierAnswer, Tag("union[answer]")]
    | Annotated[CallMessage, Tag("union[call]")]
    | Annotated[ToolMessage, Tag("union[tool]")],
    Discriminator(choose_kind),
]
