"""The service's answers as typed models. Keys that a newer service adds are kept as attributes."""

from datetime import UTC, datetime
from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field

JobStatus = Literal["queued", "running", "completed", "failed", "cancelled"]
Priority = Literal["high", "normal", "low"]
Strategy = Literal["queue", "reject"]
ENDED: tuple[JobStatus, ...] = ("completed", "failed", "cancelled")


class Answer(BaseModel):
    """Base of every answer."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())


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
    """A job in the Training API's words. Times are epoch seconds; what is not known yet is None."""

    job_id: str
    status: JobStatus
    config: dict[str, Any]
    start_time: float | None = None
    end_time: float | None = None
    tracking_url: str | None = None
    error: str | None = None
    output_path: str | None = None
    queue_position: int | None = None
    phase: str | None = None
    progress: Progress | None = None
    result: dict[str, Any] | None = None
    metadata: dict[str, str] = Field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether the status is final."""
        return self.status in ENDED

    @property
    def started_at(self) -> datetime | None:
        """`start_time` with its zone."""
        return None if self.start_time is None else datetime.fromtimestamp(self.start_time, UTC)


class Submitted(Answer):
    """A job was made. `status` is `started` or `queued`, or the SFT API's `running` or `pending`."""

    job_id: str
    status: str
    message: str | None = None


class Cancelled(Answer):
    """A job was cancelled."""

    status: str
    message: str


class Queue(Answer):
    """The line of jobs: ids of those that wait, next one first."""

    is_training_running: bool
    queue_length: int
    queued_jobs: list[str]


class Checkpoint(Answer):
    """A checkpoint of a job. `complete`: whole, so that training can go on from it."""

    step: int
    path: str
    time: datetime
    bytes: int | None = None
    complete: bool


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

    timestamp: datetime
    level: str
    logger: str
    message: str


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
    webhook_url: str | None
    metadata: dict[str, str]
    priority: Priority
    dataset_split: str
    dataset_text_field: str | None
    max_samples: int | None
    validation_split: float
    use_lora: bool
    use_qlora: bool
    lora_r: int
    lora_alpha: int
    lora_dropout: float
    lora_target_modules: list[str] | str | None
    max_steps: int | None
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
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
    save_total_limit: int
    output_dir: str | None
    checkpoint_dir: str | None
    save_merged_model: bool
    run_name: str | None
    wandb_project: str | None
    wandb_entity: str | None
    wandb_run_name: str | None
    seed: int


class JobFilters(TypedDict, total=False):
    """What `GET /train` filters by. Times are ISO 8601 or datetimes; metadata is matched pair by pair."""

    status: JobStatus
    model: str
    adapter: str
    dataset: str
    created_after: datetime | str
    created_before: datetime | str
    metadata: dict[str, str]
