"""Responses about the service itself, and the shape of errors."""

from pydantic import Field

from tuneyard_wire.response import Response, with_example

_READY = {"ok": True, "detail": "responds"}


class Description(Response):
    """Name, version and endpoints of the service."""

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
    """Confirms that a request was carried out."""

    message: str


class Health(Response):
    """The process runs."""

    model_config = with_example(status="ok", version="0.1.0")

    status: str = "ok"
    version: str


class PartReadiness(Response):
    """Readiness of one part that jobs need."""

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
    """An error response."""

    detail: str = Field(description="For people: what is wrong and how to fix it.")
    code: str = Field(description="For programs: a stable name.")
    request_id: str = Field(description="Also in the header X-Request-ID and in the service's log.")
