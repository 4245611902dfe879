"""Which run stands for which job: the one of its id, but for a job whose run was lost while it waited."""

from uuid import UUID

from sqlalchemy import Connection, Engine, select

from jobs.storage.connections import autocommit
from jobs.storage.tables import JobReport


class RunIds:
    """The runs that stand for jobs of other ids, as they are now. None are known without a database."""

    def __init__(self, engine: Engine | None) -> None:
        self._by_job: dict[UUID, UUID] = {}
        if engine is not None:
            wanted = select(JobReport.job_id, JobReport.run_id).where(JobReport.run_id.is_not(None))
            with autocommit(engine) as connection:
                self._by_job = {row.job_id: row.run_id for row in connection.execute(wanted)}
        self._by_run = {run_id: job_id for job_id, run_id in self._by_job.items()}

    @property
    def jobs(self) -> set[UUID]:
        """The jobs whose runs have ids of their own."""
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
