"""Responses for a job's events, log, metrics and checkpoints."""

from typing import Annotated, Any

from pydantic import Field, WithJsonSchema

from tuneyard_wire.response import Moment, Response, with_example

_POINT = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_SERIES = {"type": "object", "additionalProperties": {"type": "array", "items": _POINT}}


class JobEvent(Response):
    """A server-sent event. `data` is sent as JSON text; `id` is the value for `Last-Event-ID`."""

    id: str | None
    event: str = Field(
        description="`phase`, `begin`, `step`, `epoch`, `evaluate`, `checkpoint`, `stored` (a checkpoint has "
        "reached the store), `restart` (at an earlier step than that of a checkpoint; with the reason), "
        "`lacking` (a host lacks the model and leaves the job to another one), `merge` (with `merged_path` or the "
        "`error`) and, last, `end`."
    )
    data: Annotated[dict[str, Any], WithJsonSchema({"type": "string", "contentMediaType": "application/json"})]


class LogLine(Response):
    """A line of a job's log."""

    model_config = with_example(
        timestamp="2026-04-05T16:29:40+00:00", level="INFO", logger="tasks.train", message="step 100 of 117"
    )

    timestamp: Moment
    level: str
    logger: str
    message: str


class Metrics(Response):
    """(step, value) pairs by metric, in order of steps."""

    model_config = with_example(series={"loss": [[1, 2.31], [2, 2.07]], "eval_loss": [[2, 2.2]]})

    series: Annotated[dict[str, list[tuple[int, float]]], WithJsonSchema(_SERIES)]


class Checkpoint(Response):
    """A checkpoint. `complete`: training can resume from it. `path` is a URL if it is only in the store.

    `bytes` is null if it is on another machine; then it is `complete` while the job is on that machine. `model` is its
    name in `/v1/chat/completions`, null if it has no adapter or is not complete.
    """

    model_config = with_example(
        step=100,
        path="/srv/tuneyard/outputs/550e8400-e29b-41d4-a716-446655440000/checkpoints/checkpoint-100",
        time="2026-04-05T16:29:40+00:00",
        bytes=14680064,
        complete=True,
        model="ft:org/base:tuneyard:handbook:550e8400-e29b-41d4-a716-446655440000:ckpt-step-100",
    )

    step: int
    path: str
    time: Moment
    bytes: int | None = None
    complete: bool
    model: str | None = None


class Checkpoints(Response):
    """The stored checkpoints, in order of steps."""

    model_config = with_example(checkpoints=[Checkpoint.example()])

    checkpoints: list[Checkpoint]
