"""Functions that a model may call, their calls and results, as requests for answers have them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from sft.explanations import Matching

MOST_TOOLS = 128
NAME = Matching(r"^[A-Za-z0-9_-]{1,64}$", "must have up to 64 letters, digits, '_' and '-'")
CallId = Annotated[str, Field(min_length=1, max_length=200)]


class FunctionDefinition(BaseModel):
    """What a function does and takes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, NAME]
    description: str | None = None
    parameters: dict[str, JsonValue] | None = Field(None, description="A JSON Schema, which the template writes.")
    strict: Literal[False] | None = Field(None, description="False only: answers are not forced into a schema.")


class ToolDefinition(BaseModel):
    """A function that the model may call."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["function"]
    function: FunctionDefinition

    def to_plain(self) -> dict[str, Any]:
        """The function as chat templates take it."""
        function = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": "function", "function": function}


class CalledFunction(BaseModel):
    """The function of a call."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1)]
    arguments: str = Field(description="A JSON object, as text.")


class MessageCall(BaseModel):
    """A call in an earlier answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: CallId
    type: Literal["function"]
    function: CalledFunction
