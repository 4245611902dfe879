"""Responses for jobs in both APIs."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from tuneyard_wire.fields import Priority, TrainStatus
from tuneyard_wire.response import EpochSeconds, Id, Moment, Response, one_of, with_example
from tuneyard_wire.rows import JobRows, PartRows
from tuneyard_wire.serving_check import ServingCheck

SftStatus = Literal["pending", "running", "completed", "failed", "stopped"]
StartedStatus = Annotated[str, one_of("started", "queued")]
CancelledStatus = Annotated[str, one_of("cancelled")]
ENDED: tuple[TrainStatus, ...] = ("completed", "failed", "cancelled")

_ID = "550e8400-e29b-41d4-a716-446655440000"
_PROGRESS: dict[str, Any] = {
    "step": 40,
    "total_steps": 117,
    "percent": 34.2,
    "epoch": 1.03,
    "loss": 0.412,
    "tokens_per_second": 212.0,
    "eta_seconds": 81.0,
}
_RESULT: dict[str, Any] = {
    "train_loss": 0.398,
    "eval_loss": 0.441,
    "adapter_path": f"/srv/tuneyard/outputs/{_ID}/adapter",
    "merged_path": None,
    "merge_error": None,
    "output_dir": f"/srv/tuneyard/outputs/{_ID}",
    "model_name": "handbook",
    "model_version": "3",
    "rows": JobRows.example(),
    "warnings": ["fields that are not used: source (899 rows)"],
    "adapted": {
        "trainable_parameters": 9232384,
        "parameters": 1552946688,
        "share": 0.0059,
        "modules": {"down_proj": 28, "gate_proj": 28, "q_proj": 28},
        "left_out": [],
    },
    "previous_version": "2",
    "previous_eval_loss": 0.487,
    "is_worse": False,
    "comparison": "version 3 is better than version 2: held-out loss 0.441 after 0.487 on the same rows",
    "serving_check": ServingCheck.example(),
    "stopped_early": False,
    "metrics": {"train_loss": 0.398, "eval_loss": 0.441, "train_runtime": 551.9},
}
_JOB: dict[str, Any] = {
    "job_id": _ID,
    "name": "graceful-otter",
    "status": "running",
    "priority": "normal",
    "config": {"model_name": "Qwen/Qwen2.5-1.5B-Instruct", "dataset_version": "v1.0", "template": "qwen"},
    "error": None,
    "error_code": None,
    "attempt": 1,
    "queue_position": None,
    "waiting_for": None,
    "phase": "training",
    "progress": _PROGRESS,
    "result": None,
    "metadata": {"team": "search"},
    "config_id": None,
    "config_version": None,
    "config_name": None,
    "made_by": None,
    "owner": None,
}


class Progress(Response):
    """Training progress. `eta_seconds` is the remaining training time."""

    model_config = with_example(**_PROGRESS)

    step: int
    total_steps: int
    percent: float | None = None
    epoch: float | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    eta_seconds: float | None = None


class SourceResult(PartRows):
    """A dataset of a job that has several: its exact version, its rows, and the loss on those it held out."""

    commit: str | None = None
    md5: str
    base_eval_loss: float | None = None
    eval_loss: float | None = None


class Result(Response):
    """The result of a completed job."""

    model_config = with_example(**_RESULT)

    train_loss: float | None = None
    eval_loss: float | None = None
    adapter_path: str | None = None
    merged_path: str | None = Field(None, description="The merged model, with save_merged_model.")
    merge_error: str | None = Field(
        None, description="Why there is no merged model, though save_merged_model is set; the adapter is registered."
    )
    output_dir: str | None = None
    model_name: str | None = Field(None, description="The adapter's name in the registry.")
    model_version: str | None = None
    rows: JobRows | None = Field(None, description="Rows used, skipped and truncated.")
    sources: list[SourceResult] | None = Field(
        None,
        exclude_if=lambda sources: sources is None,
        description="Each dataset, if there are several, or others to evaluate on.",
    )
    warnings: list[str] = Field(
        default_factory=list, description="Anything unexpected in the rows, the model, the run or its loss."
    )
    adapted: dict[str, Any] | None = Field(
        None,
        description="What was trained: `trainable_parameters` of `parameters` and their `share`, `modules` (layers by "
        "name) and the parts that were `left_out`, with the reason.",
    )
    previous_version: str | None = Field(None, description="The previous version in the registry.")
    previous_eval_loss: float | None = Field(None, description="The previous version's held-out loss.")
    is_worse: bool | None = Field(
        None, description="Whether the held-out loss is higher than the previous version's; null if not comparable."
    )
    comparison: str | None = Field(None, description="Comparison with the previous version, in a sentence.")
    serving_check: ServingCheck | None = Field(
        None,
        exclude_if=lambda check: check is None,
        description="The saved files, loaded in a fresh process before they were registered.",
    )
    stopped_early: bool = Field(False, description="Ended by early_stopping_patience, before the planned steps.")
    metrics: dict[str, int | float | None] = Field(default_factory=dict)


class Maker(Response):
    """The flow run that created a job, why, and the adapter's version it retrains."""

    flow: str
    run_id: Id
    adapter_version: str
    reason: str


class _Job(Response):
    """Fields of a job in both APIs."""

    job_id: Id
    name: str = ""
    status: str
    priority: Priority = "normal"
    config: dict[str, Any] = Field(description="The effective values of the job, with the API's field names.")
    error: str | None = None
    error_code: str | None = None
    attempt: int | None = None
    queue_position: int | None = None
    waiting_for: str | None = None
    phase: str | None = None
    progress: Progress | None = None
    result: Result | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    config_id: Id | None = None
    config_version: int | None = None
    config_name: str | None = None
    made_by: Maker | None = None
    owner: Id | None = Field(None, description="The API key to which the job belongs, if one made it.")


class TrainJob(_Job):
    """A job in the Training API. Times are epoch seconds; what is not known yet is null.

    `start_time` is when the job was accepted and, once it has started, when it started. `status` is `created` for a
    job created from Python that has not been submitted yet.
    """

    model_config = with_example(
        **_JOB,
        start_time=1712334054.539546,
        end_time=None,
        tracking_url="http://127.0.0.1:5000/#/experiments/1/runs/6f0e0f1f",
        output_path=None,
    )

    status: TrainStatus
    start_time: EpochSeconds = 0.0
    end_time: EpochSeconds | None = None
    tracking_url: str | None = None
    output_path: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the status is final."""
        return self.status in ENDED

    @property
    def started_at(self) -> datetime | None:
        """`start_time` as a datetime in UTC; None while it is not known."""
        return datetime.fromtimestamp(self.start_time, UTC) if self.start_time else None


class SftJob(_Job):
    """A job in the SFT API. What is not known yet is null."""

    model_config = with_example(
        **_JOB
        | {
            "status": "completed",
            "created_at": "2026-04-05T16:20:51.118000+00:00",
            "started_at": "2026-04-05T16:20:54.539546+00:00",
            "completed_at": "2026-04-05T16:31:07.004000+00:00",
            "result": _RESULT,
            "phase": "done",
            "progress": _PROGRESS | {"step": 117, "percent": 100.0, "eta_seconds": 0.0},
            "config": {"base_model": "gpt2", "dataset_name": "tatsu-lab/alpaca", "dataset_format": "alpaca"},
        }
    )

    status: SftStatus
    created_at: Moment | None = None
    started_at: Moment | None = None
    completed_at: Moment | None = None


class SftJobs(Response):
    """A list of jobs, newest first."""

    model_config = with_example(jobs=[SftJob.example()])

    jobs: list[SftJob]


class SubmissionWarning(Response):
    """A problem, found at submission, that will fail the job."""

    model_config = with_example(
        code="model_not_found",
        message="model_name 'Qwen/Qwen2.5-1.5B-Instuct' is neither in the model root (/srv/tuneyard/models/Qwen/"
        "Qwen2.5-1.5B-Instuct) nor in the Hugging Face cache, and the Hub has no such model that you can access; put "
        "its files into /srv/tuneyard/models/Qwen/Qwen2.5-1.5B-Instuct or name another model, or set HF_TOKEN",
    )

    code: str
    message: str


class Submitted(Response):
    """A job was created. `warnings`, if present, name the known problems that will fail it.

    `status` is `started` or `queued`, or the SFT API's `running` or `pending`.
    """

    job_id: Id
    status: str
    message: str | None = None
    warnings: list[SubmissionWarning] = Field(default_factory=list, exclude_if=lambda warnings: not warnings)


class TrainStarted(Submitted):
    """A job was created. `warnings`, if present, name the known problems that will fail it."""

    model_config = with_example(job_id=_ID, status="started", message="Training job started")

    status: StartedStatus
    message: str


class SftStarted(Submitted):
    """A job was created. `warnings`, if present, name the known problems that will fail it."""

    model_config = with_example(job_id=_ID, status="running")

    status: SftStatus
    message: str | None = Field(None, exclude_if=lambda message: message is None)


class Cancelled(Response):
    """A job was cancelled."""

    model_config = with_example(status="cancelled", message=f"Training job {_ID} cancelled")

    status: CancelledStatus
    message: str


class Queue(Response):
    """The queue: ids of the queued jobs, next one first."""

    model_config = with_example(is_training_running=True, queue_length=1, queued_jobs=[_ID])

    is_training_running: bool
    queue_length: int
    queued_jobs: list[Id]
