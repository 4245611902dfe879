"""`Job`: a job as the interfaces show it, joined from Prefect's run and the job's report."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun

from jobs.engine.job_queue import priority_of
from jobs.spec import JobSpec, read_owner, read_spec
from jobs.status import JobStatus, is_without_deployment
from jobs.storage.tables import JobReport
from sft.errors import InvalidConfig
from tuneyard_wire.fields import Priority


@dataclass(frozen=True)
class Job:
    """A job. Times have a zone; `queue_position` counts from 1 and is set only while other jobs are ahead."""

    id: UUID
    name: str  # the Prefect run's name: config.run_name on one line, or a generated one
    status: JobStatus
    priority: Priority
    spec: JobSpec | None  # None if the run's parameters, edited in the Prefect UI, are invalid
    raw_config: dict[str, Any]
    created_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    queue_position: int | None = None
    waiting_for: str | None = None  # what it waits for besides the jobs ahead, such as a paused work pool
    phase: str | None = None
    progress: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
    error_code: str | None = None
    attempt: int | None = None  # number of attempts started
    tracking_url: str | None = None
    output_path: str | None = None
    owner: UUID | None = None  # the API key that made it

    @property
    def start_time(self) -> datetime | None:
        """When the job started, or before that when it was accepted. None only if Prefect's run has no time."""
        return self.started_at or self.created_at


def job_from_run(
    run: FlowRun, status: JobStatus, queue_position: int | None, report: JobReport | None, attempt: int | None = None
) -> Job:
    """Join a Prefect run and its report. The run's state counts until the report has the final status.

    Parameters count as they were when the job started; later edits in Prefect have no effect.
    """
    if report and report.status:
        status, queue_position = JobStatus(report.status), None
    elif run.state and is_without_deployment(run.state.type.value, run.state.message, run.deployment_id):
        status = JobStatus.RUNNING if attempt else JobStatus.QUEUED  # the watchdog will create another run
    if report and report.run and report.run_id:  # the run replaces a lost one
        first = {name: datetime.fromisoformat(report.run[name]) for name in ("created",) if name in report.run}
        run = run.model_copy(update=first)
    is_settled = report is not None and report.run is not None and (attempt or report.status)
    parameters = (report.run or {}).get("parameters") if report and is_settled else None
    read = read_spec(parameters or run.parameters)
    failed = status is JobStatus.FAILED
    problem = None if report and report.status else read.problem
    error = report.error if report and report.error else _explain_state(run)
    return Job(
        id=run.id,
        name=run.name,
        status=status,
        priority=priority_of(run),
        spec=read.spec,
        raw_config=dict(read.raw_config),  # `read` is cached
        created_at=run.created,
        started_at=_read_start(run) if attempt or not (report and report.status) else None,
        ended_at=(report and report.ended_at) or (run.end_time if status.is_terminal else None),
        queue_position=queue_position,
        phase=report.phase if report else None,
        progress=report.progress if report else None,
        result=report.result if report and status is JobStatus.COMPLETED else None,
        error=(problem or error) if failed else None,
        error_code=_find_code(problem, report) if failed else None,
        attempt=attempt,
        tracking_url=report.tracking_url if report else None,
        output_path=report.output_path if report else None,
        owner=read_owner(run.tags),
    )


def _read_start(run: FlowRun) -> datetime | None:
    """When the run started, not before its creation: the time is from a worker's clock, which may be behind.

    None for a run that ended without starting, which Prefect shows as started at its end.
    """
    if run.start_time is None or not run.run_count:
        return None
    return max(run.created, run.start_time) if run.created else run.start_time


def job_from_report(job_id: UUID, report: JobReport, attempt: int | None = None) -> Job | None:
    """Rebuild a job whose Prefect run was deleted from its report; None if the report has no facts of the run."""
    facts = report.run or {}
    if "created" not in facts:
        return None
    run = FlowRun.model_validate(
        {
            "id": job_id,
            "flow_id": job_id,
            "name": facts["name"],
            "parameters": facts.get("parameters") or {},
            "run_count": attempt or 0,
        }
        | {key: facts[key] for key in ("created", "start_time", "work_queue_name", "tags") if key in facts}
    )
    return job_from_run(run, JobStatus.QUEUED, None, report, attempt)


def _find_code(problem: str | None, report: JobReport | None) -> str:
    if problem is not None:
        return InvalidConfig.code
    return (report.error_code if report else None) or "crashed"


def _explain_state(run: FlowRun) -> str:
    """Prefect's message for a run that ended without a report, in one line."""
    message = (run.state.message if run.state else None) or "the job's process ended without an error message"
    return message.removeprefix("Flow run encountered an exception: ").splitlines()[0]
