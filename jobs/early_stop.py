"""Records a SIGTERM received during a job's start-up, so that it is not counted as a failed attempt.

A job's first seconds are spent importing libraries, when there is nothing to save and a signal handler can do little.
The handler therefore replaces the process (exec) with this module, which records the stop and exits.
"""

import os
import signal
import sys
from types import FrameType


def record_early_stop() -> None:
    """Handle SIGTERM until the attempt begins, which has its own handler; a blocked signal is delivered now."""
    signal.signal(signal.SIGTERM, _become_note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _become_note(_number: int, _frame: FrameType | None) -> None:
    os.execv(sys.executable, [sys.executable, "-m", "jobs.early_stop"])  # noqa: S606 - replaces this process


def main() -> None:
    """Record the stop for the job of PREFECT__FLOW_RUN_ID."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    from uuid import UUID

    from jobs.lifecycle.attempts import mark_interrupted
    from jobs.settings import Settings
    from jobs.storage.tables import engine_for

    database_url = Settings().database_url
    if database_url is None:
        sys.exit("TUNEYARD_DATABASE_URL must be set where jobs run")
    mark_interrupted(engine_for(database_url), UUID(os.environ["PREFECT__FLOW_RUN_ID"]))


if __name__ == "__main__":
    main()
