"""Maps runs to jobs: the ids are equal, except for a job whose lost run was re-created."""

from datetime import timedelta
from uuid import UUID

from sqlalchemy import Connection, Engine, and_, func, or_, select

from jobs.status import JobStatus
from jobs.storage.connections import autocommit
from jobs.storage.tables import JobReport

JUST_ENDED = timedelta(seconds=60)

_BY_ITSELF = JobReport.status.in_((JobStatus.COMPLETED.value, JobStatus.FAILED.value))
_HAS_JUST_ENDED = and_(JobReport.ended_at > func.now() - JUST_ENDED, _BY_ITSELF)
_IDS = select(JobReport.job_id, JobReport.run_id, _HAS_JUST_ENDED.label("has_just_ended")).where(
    or_(JobReport.run_id.is_not(None), _HAS_JUST_ENDED)
)


class RunIds:
    """The runs whose jobs have other ids, at this moment. Empty without a database.

    Attributes:
        just_ended: runs whose jobs have ended, which Prefect may not know yet.
    """

    def __init__(self, engine: Engine | None) -> None:
        self._by_job: dict[UUID, UUID] = {}
        self.just_ended: list[UUID] = []
        if engine is not None:
            self._read(engine)
        self._by_run = {run_id: job_id for job_id, run_id in self._by_job.items()}

    def _read(self, engine: Engine) -> None:
        with autocommit(engine) as connection:
            for row in connection.execute(_IDS):
                if row.run_id is not None:
                    self._by_job[row.job_id] = row.run_id
                if row.has_just_ended:
                    self.just_ended.append(row.run_id or row.job_id)

    @property
    def jobs(self) -> set[UUID]:
        """The jobs whose runs were re-created."""
        return set(self._by_job)

    def run_of(self, job_id: UUID) -> UUID:
        """The id of the job's run."""
        return self._by_job.get(job_id, job_id)

    def job_of(self, run_id: UUID) -> UUID:
        """The id of the run's job."""
        return self._by_run.get(run_id, run_id)


def find_job(connection: Connection, run_id: UUID) -> UUID:
    """The id of the run's job."""
    return connection.execute(select(JobReport.job_id).where(JobReport.run_id == run_id)).scalar() or run_id
