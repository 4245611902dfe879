"""What the service tells of itself, and its errors."""

from pydantic import Field

from tuneyard_wire.response import Response, with_example

_READY = {"ok": True, "detail": "answers"}


class Description(Response):
    """What this service is."""

    model_config = with_example(
        name="Tuneyard",
        version="0.1.0",
        description="Self-hosted LoRA fine-tuning: post a job, get a registered adapter.",
        endpoints={"POST /train": "Start a training job (?strategy=queue or reject)"},
    )

    name: str
    version: str
    description: str
    endpoints: dict[str, str]


class Message(Response):
    """It was done."""

    message: str


class Health(Response):
    """The process answers."""

    model_config = with_example(status="ok", version="0.1.0")

    status: str = "ok"
    version: str


class PartReadiness(Response):
    """One part that jobs need."""

    ok: bool
    detail: str


class Readiness(Response):
    """Whether a job could run now."""

    model_config = with_example(
        ready=True, parts=dict.fromkeys(("database", "prefect", "mlflow", "worker", "watchdog"), _READY)
    )

    ready: bool
    parts: dict[str, PartReadiness]


class Error(Response):
    """What every error looks like."""

    detail: str = Field(description="For people: what is wrong, and what to do.")
    code: str = Field(description="For programs: stable, in words joined by underscores.")
    request_id: str = Field(description="Also in X-Request-ID and in the service's log line.")
