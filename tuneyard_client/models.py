"""The service's answers as typed models. Keys that a newer service adds are kept as attributes."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypedDict

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

JobStatus = Literal["created", "queued", "running", "completed", "failed", "cancelled"]
Priority = Literal["high", "normal", "low"]
WebhookEvent = Literal["started", "checkpoint"]
Strategy = Literal["queue", "reject"]
ENDED: tuple[JobStatus, ...] = ("completed", "failed", "cancelled")

# A day within the years 1 to 9999, so that every time zone has them.
EARLIEST, LATEST = -62135510400, 253402214400


def _check_moment(moment: datetime) -> datetime:
    try:
        is_inside = EARLIEST <= moment.timestamp() <= LATEST
    except (ValueError, OverflowError):  # without a zone it is of this machine's
        is_inside = False
    if not is_inside:
        raise ValueError("outside the years 1 to 9999")
    return moment


Moment = Annotated[datetime, AfterValidator(_check_moment)]
EpochSeconds = Annotated[float, Field(ge=EARLIEST, le=LATEST)]


class Answer(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class Progress(Answer):
    """How far training is."""

    step: int
    total_steps: int
    percent: float
    epoch: float | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None


class Job(Answer):
    """A job in the Training API's words. Times are epoch seconds; what is not known yet is None.

    `start_time` is when the job was accepted and, once it has begun, when it began.
    """

    job_id: str
    status: JobStatus
    config: dict[str, Any]
    start_time: EpochSeconds | None = None
    end_time: EpochSeconds | None = None
    tracking_url: str | None = None
    error: str | None = None
    error_code: str | None = None
    attempt: int | None = None
    output_path: str | None = None
    queue_position: int | None = None
    waiting_for: str | None = None
    phase: str | None = None
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    made_by: dict[str, Any] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the status is final."""
        return self.status in ENDED

    @property
    def started_at(self) -> datetime | None:
        """`start_time` with its zone."""
        return None if self.start_time is None else datetime.fromtimestamp(self.start_time, UTC)


class SubmissionWarning(Answer):
    """Something that will fail a job, known when it was submitted."""

    code: str
    message: str


class Submitted(Answer):
    """A job was made. `status` is `started` or `queued`, or the SFT API's `running` or `pending`.

    `warnings` say what will fail it, as far as the service knows.
    """

    job_id: str
    status: str
    message: str | None = None
    warnings: list[SubmissionWarning] = Field(default_factory=list)


class Cancelled(Answer):
    """A job was cancelled."""

    status: str
    message: str


class Queue(Answer):
    """The queue: ids of the waiting jobs, the next one first."""

    is_training_running: bool
    queue_length: int
    queued_jobs: list[str]


class Checkpoint(Answer):
    """A checkpoint of a job. `complete`: whole, so that training can go on from it."""

    step: int
    path: str
    time: Moment
    bytes: int | None = None
    complete: bool


class DeliveryAttempt(Answer):
    """One call of a webhook: the receiver's status, or why there was none."""

    time: Moment
    status_code: int | None = None
    error: str | None = None


class Delivery(Answer):
    """One event of a job that its webhook is told of; `state` is pending, delivered, failed or gone.

    `event` is started, checkpoint or ended; `status` that of the job, as the webhook is told it.
    """

    delivery_id: str
    webhook_id: str
    job_id: str
    event: str = "ended"
    status: str
    url: str
    state: str
    attempts: list[DeliveryAttempt]
    next_attempt_at: Moment | None = None
    created_at: Moment


class Metrics(Answer):
    """Metrics of a job: (step, value) pairs by name."""

    series: dict[str, list[tuple[int, float]]]


class JobEvent(Answer):
    """Something that happened in a job: `phase`, `step`, `evaluate`, `checkpoint` ... and, last, `end`."""

    id: str | None
    event: str
    data: dict[str, Any]


class LogLine(Answer):
    """A line of a job's log."""

    timestamp: Moment
    level: str
    logger: str
    message: str


class PlanWarning(Answer):
    """Something to know before a job is started; `rows` of the data file, where rows are meant."""

    code: str
    message: str
    rows: list[int] | None = None


class PlannedRows(Answer):
    """What becomes of the rows of a split; `notes` has the numbers of those left out or cut, `reasons` why."""

    rows: int
    used: int
    skipped: int = 0
    reasons: list[dict[str, Any]] = Field(default_factory=list)
    dropped: int
    invalid: int
    too_long: int
    truncated: int
    tokens: int
    supervised_tokens: int
    notes: dict[str, Any]


class PlannedMemory(Answer):
    """Memory of the device that the plan is made for."""

    peak_bytes: int
    free_bytes: int
    fits: bool
    largest_batch_size: int


class PlannedDisk(Answer):
    """What the job writes."""

    needed_bytes: int
    free_bytes: int
    fits: bool


class PlannedTime(Answer):
    """How long the job runs. `basis`: `past_runs`, `probe`, or `matrix_product` alone."""

    basis: str
    train_seconds: float
    total_seconds: float
    tokens_per_second: float


class Plan(Answer):
    """What a job would take. `samples`: rows as the model reads them, cut into `parts` that are `supervised` or not."""

    dataset: dict[str, Any]
    device: dict[str, Any]
    rows: dict[Literal["train", "eval"], PlannedRows | None]
    ignored: dict[str, int] = Field(default_factory=dict)
    tokens: dict[str, Any]
    batches: dict[str, Any]
    steps: int
    epochs: float
    model: dict[str, Any]
    memory: PlannedMemory
    disk: PlannedDisk
    time: PlannedTime
    samples: list[dict[str, Any]]
    warnings: list[PlanWarning]


class SavedConfig(Answer):
    """A saved configuration, whole or partial."""

    config_id: str
    name: str
    config: dict[str, Any] = Field(default_factory=dict)
    version: int | None = None


class TrainingFields(TypedDict, total=False):
    """The body of `POST /train`; the service's defaults stand for what is left out."""

    model_name: str
    dataset_version: str
    template: str
    cutoff_len: int
    batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float | str
    num_epochs: float
    training_type: Literal["sft"]
    lora_name: str | None
    lora_version: int | str | None
    adapter_path: str | None
    save_name: str | None
    tracking_backend: Literal["mlflow", "wandb"]
    logging_backend: Literal["mlflow", "wandb"] | None
    webhook_url: str | None
    webhook_events: list[WebhookEvent] | None
    metadata: dict[str, str]
    priority: Priority
    dataset_split: str
    dataset_text_field: str | None
    max_samples: int | None
    excess_length_strategy: Literal["truncate", "drop", "error"]
    invalid_rows: Literal["skip", "error"]
    train_on_prompt: bool
    mask_history: bool
    validation_split: float
    use_lora: bool
    use_qlora: bool
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_target_modules: list[str] | str | None
    use_dora: bool
    use_rslora: bool
    loraplus_lr_ratio: float | None
    max_batch_tokens: int | None
    max_steps: int | None
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    neftune_noise_alpha: float | None
    optimizer_type: str | None
    scheduler_type: Literal["cosine", "linear", "constant"]
    mixed_precision: Literal["auto", "bf16", "fp16", "none"]
    gradient_checkpointing: bool | Literal["auto"]
    packing: bool
    num_devices: int
    device_map: str | None
    logging_steps: int
    save_steps: int
    eval_steps: int | None
    early_stopping_patience: int | None
    save_total_limit: int
    output_dir: str | None
    checkpoint_dir: str | None
    save_merged_model: bool
    run_name: str | None
    wandb_project: str | None
    wandb_entity: str | None
    wandb_run_name: str | None
    seed: int


class AroundConfig(TypedDict, total=False):
    """What `POST /api/sft/train` takes beside `config`."""

    config_id: str | None
    adapter_name: str | None
    tracking_backend: str | None
    webhook_url: str | None
    webhook_events: Sequence[WebhookEvent] | None
    metadata: Mapping[str, str] | None
    priority: Priority | None


class JobFilters(TypedDict, total=False):
    """What `GET /train` filters by. Times are ISO 8601 or datetimes; metadata is matched pair by pair."""

    status: JobStatus
    model: str
    adapter: str
    dataset: str
    created_after: datetime | str
    created_before: datetime | str
    metadata: dict[str, str]
    id_prefix: str
