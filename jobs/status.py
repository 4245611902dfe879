"""Maps Prefect's states to a job's status, and the status to the words of both documented interfaces."""

from enum import StrEnum
from typing import TYPE_CHECKING

from jobs.vocabulary import ONGOING_NAMES, RunState, StateName

if TYPE_CHECKING:
    from tuneyard_wire.fields import TrainStatus
    from tuneyard_wire.jobs import SftStatus


class JobStatus(StrEnum):
    """The canonical status of a job."""

    CREATED = "created"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    CANCELLED = "cancelled"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_terminal(self) -> bool:
        """Whether the job has ended; a terminal status never changes."""
        return self in (JobStatus.CANCELLED, JobStatus.COMPLETED, JobStatus.FAILED)


# Prefect's state type -> status. SCHEDULED, PENDING and PAUSED are refined in `status_of`.
_BY_STATE_TYPE = {
    RunState.SCHEDULED: JobStatus.QUEUED,
    RunState.PENDING: JobStatus.STARTING,
    RunState.PAUSED: JobStatus.QUEUED,
    RunState.RUNNING: JobStatus.RUNNING,
    RunState.CANCELLING: JobStatus.CANCELLED,
    RunState.CANCELLED: JobStatus.CANCELLED,
    RunState.COMPLETED: JobStatus.COMPLETED,
    RunState.FAILED: JobStatus.FAILED,
    RunState.CRASHED: JobStatus.RUNNING,  # until `jobs.watchdog.recovery` has decided to retry or fail it
}

TRAIN_STATUS_NAMES: dict[JobStatus, "TrainStatus"] = {
    JobStatus.CREATED: "created",
    JobStatus.QUEUED: "queued",
    JobStatus.STARTING: "running",
    JobStatus.RUNNING: "running",
    JobStatus.CANCELLED: "cancelled",
    JobStatus.COMPLETED: "completed",
    JobStatus.FAILED: "failed",
}

SFT_STATUS_NAMES: dict[JobStatus, "SftStatus"] = {
    JobStatus.CREATED: "pending",
    JobStatus.QUEUED: "pending",
    JobStatus.STARTING: "running",
    JobStatus.RUNNING: "running",
    JobStatus.CANCELLED: "stopped",
    JobStatus.COMPLETED: "completed",
    JobStatus.FAILED: "failed",
}


def status_of(state_type: str, state_name: str, has_free_slot: bool) -> JobStatus:
    """The status of a run in this Prefect state.

    Args:
        state_type: Prefect's `StateType` value, such as `SCHEDULED`.
        state_name: Prefect's state name, such as `Late` or `AwaitingRetry`.
        has_free_slot: Whether a worker is free for this run, no other run being ahead of it.
    """
    if state_type == RunState.PAUSED and state_name == StateName.CREATED:
        return JobStatus.CREATED
    if state_type == RunState.PAUSED and state_name == StateName.LOST:
        return JobStatus.RUNNING
    if state_type == RunState.SCHEDULED:
        if state_name in ONGOING_NAMES:
            return JobStatus.RUNNING
        return JobStatus.STARTING if has_free_slot else JobStatus.QUEUED
    return _BY_STATE_TYPE[RunState(state_type)]


def state_types(*statuses: JobStatus) -> list[RunState]:
    """Prefect's state types for these statuses, where a type alone determines the status."""
    return [kind for kind, status in _BY_STATE_TYPE.items() if status in statuses]


def is_without_deployment(state_type: str, message: str | None, deployment_id: object) -> bool:
    """Whether Prefect's worker cancelled a run because its deployment was deleted, which does not end the job."""
    said = f"Deployment {deployment_id} no longer exists"
    return state_type in (RunState.CANCELLED, RunState.CANCELLING) and (message or "").startswith(said)
