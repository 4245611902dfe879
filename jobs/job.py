"""`Job`: one job as any interface shows it, joined from Prefect's run and the job's own report."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from jobs.queue import Priority, priority_of
from jobs.spec import JobSpec
from jobs.status import JobStatus
from jobs.store import JobReport
from sft.errors import InvalidConfig


@dataclass(frozen=True)
class Job:
    """A job. Times carry their zone; `queue_position` counts from 1 and is set only while others are ahead."""

    id: UUID
    name: str  # Prefect's name of the run: config.run_name on one line, or one it made up
    status: JobStatus
    priority: Priority
    spec: JobSpec | None  # None when the run's parameters, typed into the Prefect UI, are not valid
    raw_config: dict[str, Any]
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    queue_position: int | None = None
    phase: str | None = None
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    error_code: str | None = None
    attempt: int | None = None  # how many attempts at it have begun
    tracking_url: str | None = None
    output_path: str | None = None

    @property
    def start_time(self) -> datetime | None:
        """When the job began; until then, when it was accepted. It moves once, forward, and never back.

        None only where Prefect gives a run without a time.
        """
        return self.started_at or self.created_at


def job_from_run(
    run: FlowRun, status: JobStatus, queue_position: int | None, report: JobReport | None, attempt: int | None = None
) -> Job:
    """Join a Prefect run and its report. The run's state decides; the report only adds to it."""
    spec, problem = _read_spec(run.parameters)
    failed = status is JobStatus.FAILED
    error = report.error if report and report.error else _explain_state(run)
    return Job(
        id=run.id,
        name=run.name,
        status=status,
        priority=priority_of(run),
        spec=spec,
        raw_config=dict(run.parameters.get("config") or {}),
        created_at=run.created,
        started_at=_read_start(run),
        ended_at=run.end_time if status.is_terminal else None,
        queue_position=queue_position,
        phase=report.phase if report else None,
        progress=report.progress if report else None,
        result=report.result if report and status is JobStatus.COMPLETED else None,
        error=(problem or error) if failed else None,
        error_code=_find_code(problem, report) if failed else None,
        attempt=attempt,
        tracking_url=report.tracking_url if report else None,
        output_path=report.output_path if report else None,
    )


def _read_start(run: FlowRun) -> datetime | None:
    """When the run began: by a worker's clock, which may lag behind the server's, but never before it was made.

    Of a run that ended without having begun Prefect says that it began then.
    """
    if run.start_time is None or not run.run_count:
        return None
    return max(run.created, run.start_time) if run.created else run.start_time


def _read_spec(parameters: dict[str, Any]) -> tuple[JobSpec | None, str | None]:
    known = {key: value for key, value in parameters.items() if key in JobSpec.model_fields}
    try:
        return JobSpec.build(**known), None
    except InvalidConfig as error:
        return None, str(error)


def _find_code(problem: str | None, report: JobReport | None) -> str:
    if problem is not None:
        return InvalidConfig.code
    return (report.error_code if report else None) or "crashed"


def _explain_state(run: FlowRun) -> str:
    """What Prefect knows of a run that ended before it could report, in one line."""
    message = (run.state.message if run.state else None) or "the job's process ended without saying why"
    return message.removeprefix("Flow run encountered an exception: ").splitlines()[0]
