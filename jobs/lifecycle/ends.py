"""A job's end: written once, in our own database; the state of Prefect's run follows.

Prefect lets anybody set any state of a run, and restart an ended one. So a job has ended when its report says so:
its process, a cancellation or the watchdog writes the end with `record_end`. The first one wins, and the webhook is
queued in the same transaction.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Uuid, bindparam, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB, insert
from sqlalchemy.orm import Session

from jobs.spec import read_spec
from jobs.status import JobStatus, is_without_deployment
from jobs.storage.tables import JobAttempt, JobReport
from jobs.vocabulary import FINAL_STATES, RunState, make_state
from jobs.webhooks.call import NO_REASON, STATE_PREFIX, build_payload
from jobs.webhooks.outbox import CLIENT, put_delivery
from sft.errors import InvalidConfig

BY_HAND = "ended_by_hand"
RUN_FACTS = (
    *("name", "parameters", "tags", "work_queue_name", "deployment_id"),
    *("created", "expected_start_time", "start_time"),
)
STATES = {  # Prefect's states of a run, by its job's final status
    JobStatus.COMPLETED: make_state(RunState.COMPLETED),
    JobStatus.FAILED: make_state(RunState.FAILED),
    JobStatus.CANCELLED: make_state(RunState.CANCELLED),
}
ENDED = (*FINAL_STATES, RunState.CANCELLING)  # Prefect's types of ended jobs

# As text: every submission sends it, and SQLAlchemy would compile an insert with ON CONFLICT each time.
_KEEP_RUN = text(
    "INSERT INTO job_reports (job_id, run) VALUES (:job_id, :facts) ON CONFLICT (job_id) DO UPDATE "
    "SET run = excluded.run || coalesce(job_reports.run, '{}') || :begun RETURNING run"
).bindparams(bindparam("job_id", type_=Uuid), bindparam("facts", type_=JSONB), bindparam("begun", type_=JSONB))


def keep_run(
    connection: Connection,
    job_id: UUID,
    run: Mapping[str, Any],
    parameters: Mapping[str, Any] | None = None,
    client: str = "",
) -> dict[str, Any]:
    """Store the facts of a job's run when it is first seen: a lost run is re-created from them.

    Args:
        run: as in Prefect's API.
        parameters: those the job started with; they replace stored ones.
        client: who submitted the job.

    Returns:
        The stored facts: `RUN_FACTS` and `CLIENT`.
    """
    facts = {name: run[name] for name in RUN_FACTS if run.get(name) is not None}
    begun = {"parameters": parameters} if parameters else {}
    submitted = {CLIENT: client} if client else {}
    values = {"job_id": job_id, "facts": facts | begun | submitted, "begun": begun}
    return dict(connection.execute(_KEEP_RUN, values).scalar_one())


def record_end(
    connection: Connection,
    job_id: UUID,
    status: JobStatus,
    error: str | None = None,
    error_code: str | None = None,
    queues_webhook: bool = True,
    is_stopped: bool = True,
) -> bool:
    """Write the job's end and queue its webhook; False if it has ended before.

    Args:
        queues_webhook: queue the webhook, if there is one.
        is_stopped: no process may write for the job any more; otherwise one may save its last step.
    """
    if is_stopped:
        connection.execute(update(JobAttempt).where(JobAttempt.job_id == job_id).values(token=None))
    end = {"status": status.value, "ended_at": func.now(), "error": error, "error_code": error_code}
    row = insert(JobReport).values(job_id=job_id, **end)
    is_open = JobReport.status.is_(None)
    written = row.on_conflict_do_update(index_elements=["job_id"], set_=end, where=is_open).returning(JobReport.job_id)
    if connection.execute(written).first() is None:
        return False
    report = read_report(connection, job_id)
    url = read_spec((report.run or {}).get("parameters")).options.webhook_url
    if url and queues_webhook:
        put_delivery(connection, job_id, url, build_payload(job_id, status.value, report))
    return True


def read_report(connection: Connection, job_id: UUID) -> JobReport:
    """Read the job's report, which must exist; detached from the session."""
    with Session(connection, expire_on_commit=False) as session:
        return session.scalars(select(JobReport).where(JobReport.job_id == job_id)).one()


def has_ended(connection: Connection, job_id: UUID) -> JobStatus | None:
    """The job's final status; None while it has not ended."""
    status = connection.execute(select(JobReport.status).where(JobReport.job_id == job_id)).scalar()
    return JobStatus(status) if status else None


def settle(connection: Connection, run: Mapping[str, Any], queues_webhook: bool = True) -> bool:
    """Write the end of a job whose run Prefect shows as ended (`ENDED`); False if the end was written before.

    The state was set by hand, or the run failed before our code started. A run that a worker cancelled because its
    deployment was missing has not ended: it is re-created (`jobs.lifecycle.lost_runs`).
    """
    job_id = UUID(run["id"])
    if has_ended(connection, job_id) is not None or is_abandoned(run):
        return False
    connection.execute(text("SET LOCAL lock_timeout = '5s'"))
    held = select(JobAttempt.token).where(JobAttempt.job_id == job_id).with_for_update()
    is_at_work = connection.execute(held).scalar() is not None
    keep_run(connection, job_id, run)
    status, error, code = judge_end(run, read_report(connection, job_id), is_at_work)
    if not queues_webhook and run["state_type"] == RunState.COMPLETED:  # from before ends were stored
        status, error, code = JobStatus.COMPLETED, None, None
    return record_end(connection, job_id, status, error, code, queues_webhook, run["state_type"] != RunState.CANCELLING)


def is_abandoned(run: Mapping[str, Any]) -> bool:
    """Whether a worker cancelled the run because its deployment was deleted."""
    message = (run.get("state") or {}).get("message")
    return is_without_deployment(run["state_type"], message, run.get("deployment_id"))


def judge_end(run: Mapping[str, Any], report: JobReport, is_at_work: bool) -> tuple[JobStatus, str | None, str | None]:
    """Decide the end of such a run: status, error and its code."""
    kind = run["state_type"]
    said = ((run.get("state") or {}).get("message") or "").removeprefix(STATE_PREFIX)
    if kind in (RunState.CANCELLED, RunState.CANCELLING):
        return JobStatus.CANCELLED, None, None
    if kind == RunState.COMPLETED and report.result:
        return JobStatus.COMPLETED, None, None
    problem = read_spec(run["parameters"]).problem
    if kind == RunState.FAILED and problem is not None:
        return JobStatus.FAILED, problem, InvalidConfig.code
    if kind == RunState.COMPLETED or is_at_work or not run["run_count"]:
        error = f"this job's run was set to {kind.title()} in Prefect before the job had ended"
        return JobStatus.FAILED, f"{error}: {said.splitlines()[0]}" if said.strip() else error, BY_HAND
    return JobStatus.FAILED, report.error or (said.splitlines() or [NO_REASON])[0], report.error_code or "crashed"
