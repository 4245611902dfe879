"""The shapes of answers, for the OpenAPI document and the type checker.

Routes return them as `AsIs[...]`: what this service has made itself is not validated once more, which a list of
thousands of jobs would feel.
"""

from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
    create_model,
)
from pydantic_core import CoreSchema, core_schema
from typing_extensions import TypedDict  # pydantic asks for it before Python 3.12

from api.rows_answer import JobRows
from api.training_request import TrainingRequest
from jobs.preflight import SubmissionWarning
from jobs.queue import Priority
from jobs.status import SftWord, TrainWord
from sft.config import SFTConfig

Id = Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]
Time = Annotated[str, WithJsonSchema({"type": "string", "format": "date-time"})]


T = TypeVar("T")

if TYPE_CHECKING:
    AsIs = Annotated[T, ...]
else:

    class AsIs:
        """`AsIs[T]`: documented as a T, taken and written as the plain JSON values that it is."""

        def __class_getitem__(cls, shape: Any) -> Any:
            return Annotated[shape, cls()]

        def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
            documented = handler(source)
            return core_schema.any_schema(
                metadata={"pydantic_js_annotation_functions": [lambda _, show: show(documented)]},
                serialization=core_schema.wrap_serializer_function_ser_schema(
                    lambda value, _: value, schema=documented
                ),
            )


class DocumentedAs:
    """Annotation of a plain value: the OpenAPI document shows it as one of these models."""

    def __init__(self, *models: type[BaseModel]) -> None:
        self.models = models

    def __get_pydantic_json_schema__(self, _: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        shown: dict[str, Any] = handler(core_schema.union_schema([_named_schema(model) for model in self.models]))
        return shown


def _named_schema(model: type[BaseModel]) -> Any:
    """The model's schema with the reference that makes it a component of its own in the document."""
    return {**model.__pydantic_core_schema__, "ref": f"{model.__module__}.{model.__qualname__}:{id(model)}"}


class Progress(BaseModel):
    """How far training is."""

    model_config = ConfigDict(extra="allow")

    step: int
    total_steps: int
    percent: float | None
    epoch: float | None
    loss: float | None
    tokens_per_second: float | None
    eta_seconds: float | None


class Result(BaseModel):
    """What a completed job has made."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    train_loss: float | None
    eval_loss: float | None
    adapter_path: str
    merged_path: str | None = Field(None, description="The merged model, with save_merged_model.")
    output_dir: str
    model_name: str = Field(description="The adapter's name in the registry.")
    model_version: str
    rows: JobRows | None = Field(None, description="Rows that were used, skipped and cut.")
    warnings: list[str] = Field(
        default_factory=list, description="What nobody would expect of the rows, the model, the run or its loss."
    )
    adapted: dict[str, Any] | None = Field(
        None,
        description="What was trained: `trainable_parameters` of `parameters` and their `share`, `modules` (layers by "
        "name) and what of the model was `left_out`, with the reason.",
    )
    previous_version: str | None = Field(None, description="The version before it in the registry.")
    previous_eval_loss: float | None = Field(None, description="That one's held-out loss.")
    is_worse: bool | None = Field(
        None, description="Whether its held-out loss is higher than the previous one's; null if they can't be compared."
    )
    comparison: str | None = Field(None, description="How it stands to the previous version, in a sentence.")
    stopped_early: bool = Field(False, description="Ended by early_stopping_patience, before the planned steps.")
    metrics: dict[str, float | None]


class UnreadConfig(BaseModel):
    """What a job that was made elsewhere, such as in the Prefect UI, has for a configuration that is not valid."""

    model_config = ConfigDict(extra="allow")


# A job's effective values: the fields of a request, but for those that stand beside `config`.
TrainConfig = create_model(  # type: ignore[call-overload]  # which knows no fields made at run time
    "TrainConfig",
    __config__=ConfigDict(protected_namespaces=()),
    __doc__="The effective values of a job, in the Training API's words.",
    **{
        name: (field.annotation, ...)
        for name, field in TrainingRequest.model_fields.items()
        if name not in ("metadata", "priority", "logging_backend")
    },
)


class Maker(TypedDict):
    """What made a job that no person submitted: a run of a flow, why, and the adapter's version it started from."""

    flow: Literal["retrain"]
    run_id: Id
    adapter_version: str
    reason: str


class Origin(TypedDict):
    """What a job was given beside its configuration."""

    metadata: dict[str, str]
    config_id: Id | None
    config_version: int | None
    config_name: str | None
    made_by: Maker | None


class TrainJob(Origin):
    """A job in the Training API's words. Times are epoch seconds; what is not known yet is null.

    `start_time` is when the job was accepted and, once it has begun, when it began: it moves once, forward. `status`
    is `created` for a job made from Python that nobody has started yet.
    """

    job_id: Id
    name: str
    status: TrainWord
    priority: Priority
    config: Annotated[dict[str, Any], DocumentedAs(TrainConfig, UnreadConfig)]
    start_time: float
    end_time: float | None
    tracking_url: str | None
    error: str | None
    error_code: str | None
    attempt: int | None
    output_path: str | None
    queue_position: int | None
    waiting_for: str | None
    phase: str | None
    progress: Annotated[dict[str, Any], DocumentedAs(Progress)] | None
    result: Annotated[dict[str, Any], DocumentedAs(Result)] | None


class SftJob(Origin):
    """A job in the SFT API's words. What is not known yet is null."""

    job_id: Id
    name: str
    status: SftWord
    priority: Priority
    created_at: Time | None
    started_at: Time | None
    completed_at: Time | None
    error: str | None
    error_code: str | None
    attempt: int | None
    result: Annotated[dict[str, Any], DocumentedAs(Result)] | None
    phase: str | None
    progress: Annotated[dict[str, Any], DocumentedAs(Progress)] | None
    queue_position: int | None
    waiting_for: str | None
    config: Annotated[dict[str, Any], DocumentedAs(SFTConfig, UnreadConfig)]


class SftJobs(TypedDict):
    """A list of jobs, newest first."""

    jobs: list[SftJob]


class Started(TypedDict):
    """Base of the answers to a submission. `warnings` are there if any: what will fail the job, as far as is known."""

    job_id: Id
    warnings: NotRequired[list[SubmissionWarning]]


class TrainStarted(Started):
    """A job was made. `warnings`, if there are any, say what will fail it as far as is known."""

    status: Literal["started", "queued"]
    message: str


class SftStarted(Started):
    """A job was made. `warnings`, if there are any, say what will fail it as far as is known."""

    status: SftWord


class Cancelled(TypedDict):
    """A job was cancelled."""

    status: Literal["cancelled"]
    message: str


class Message(TypedDict):
    """It was done."""

    message: str


class WaitingJobs(TypedDict):
    """The line of jobs, next one first."""

    is_training_running: bool
    queue_length: int
    queued_jobs: list[Id]


class StreamedEvent(BaseModel):
    """A server-sent event. `data` is JSON text; `id` is what a client resumes after."""

    id: str
    event: str = Field(description="`phase`, `begin`, `step`, `epoch`, `evaluate`, `checkpoint` and, last, `end`.")
    data: Annotated[str, WithJsonSchema({"type": "string", "contentMediaType": "application/json"})]


class Description(TypedDict):
    """What this service is."""

    name: str
    version: str
    description: str
    endpoints: dict[str, str]


class ConfigVersion(TypedDict):
    """A version of a saved configuration, whole or partial, as it was given."""

    config_id: Id
    name: str
    config: dict[str, Any]
    version: int
    created_at: Time


class SavedConfiguration(ConfigVersion):
    """A saved configuration as it is now."""

    updated_at: Time


_POINT = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_SERIES = {"type": "object", "additionalProperties": {"type": "array", "items": _POINT}}


class Series(TypedDict):
    """Points (step, value) by metric, in order of steps."""

    series: Annotated[dict[str, list[tuple[int, float]]], WithJsonSchema(_SERIES)]


class CheckpointInfo(BaseModel):
    """A checkpoint. `complete`: whole, so that training can go on from it; `bytes` is null where it lies elsewhere."""

    step: int
    path: str
    time: Time
    bytes: int | None
    complete: bool


class DeliveryAttempt(TypedDict):
    """One call of a webhook: the receiver's status, or why there was none."""

    time: Time
    status_code: int | None
    error: str | None


class Delivery(TypedDict):
    """An event of a job that its webhook is told of. `gone`: it answered 410; `failed`: given up after 3 days.

    `webhook_id` is what the receiver gets in the header of this name, the same at each attempt.
    """

    delivery_id: Id
    webhook_id: str
    job_id: Id
    event: Literal["started", "checkpoint", "ended"]
    status: Literal["running", "completed", "failed", "cancelled"]
    url: str
    state: Literal["pending", "delivered", "failed", "gone"]
    attempts: list[DeliveryAttempt]
    next_attempt_at: Time | None
    created_at: Time


class Deliveries(TypedDict):
    """A job's deliveries, oldest first."""

    deliveries: list[Delivery]


class Checkpoints(TypedDict):
    """The checkpoints that are kept, in order of steps."""

    checkpoints: list[Annotated[dict[str, Any], DocumentedAs(CheckpointInfo)]]
