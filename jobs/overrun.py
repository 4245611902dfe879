"""`python -m jobs.overrun MESSAGE`: writes the end of a job whose process exceeded the limits on reading its input.

Run by the job's keeper, as another attempt would end the same way. The watchdog then sets the state of Prefect's run.
"""

import os
import sys
from uuid import UUID

from sqlalchemy import select

from jobs.engine.processes import VARIABLE
from jobs.lifecycle.ends import record_end
from jobs.settings import Settings
from jobs.status import JobStatus
from jobs.storage.run_ids import find_job
from jobs.storage.tables import JobAttempt, engine_for
from sft.errors import ResourceLimit


def main(message: str) -> None:
    """Write it, unless the job has ended before."""
    sys.stderr.write(f"{ResourceLimit.code}: {message}\n")
    database_url = Settings().database_url
    if database_url is None:
        sys.exit("TUNEYARD_DATABASE_URL must be set where jobs run")
    with engine_for(database_url).begin() as connection:
        job_id = find_job(connection, UUID(os.environ[VARIABLE]))
        if connection.execute(select(JobAttempt.job_id).where(JobAttempt.job_id == job_id)).first():  # else no job
            record_end(connection, job_id, JobStatus.FAILED, message, ResourceLimit.code)


if __name__ == "__main__":
    main(sys.argv[1])
