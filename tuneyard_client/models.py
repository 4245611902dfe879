"""Types of request arguments. The fields of a job are in `tuneyard_wire.fields`."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, TypedDict

from pydantic import BaseModel

from tuneyard_wire.fields import TrainStatus

Config = BaseModel | Mapping[str, Any]  # fields of SFTConfig: a mapping, or the full package's model


class JobFilters(TypedDict, total=False):
    """Filters of `GET /train`. Times are ISO 8601 or datetimes; a job must have every pair of `metadata`."""

    status: TrainStatus
    model: str
    adapter: str
    dataset: str
    created_after: datetime | str
    created_before: datetime | str
    metadata: dict[str, str]
    id_prefix: str


Messages = Sequence[Mapping[str, Any]]  # of `role` (system, user, assistant, tool) and `content`, in OpenAI's form


class AnswerOptions(TypedDict, total=False):
    """Options of an answer. `wait_seconds`: how long to wait while jobs leave no room, instead of an error."""

    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    stop: str | list[str] | None
    seed: int | None
    n: int | None
    wait_seconds: int | None


class ChatOptions(AnswerOptions, total=False):
    """Options of an answer to a chat. `tools`: functions that the model may call, in OpenAI's form."""

    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: Literal["none", "auto"] | None
