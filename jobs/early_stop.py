"""A job's process that is told to stop before its attempt has begun says so, and the stop counts as no lost attempt.

Its first seconds go into importing libraries, where nothing is to be saved and no handler may do much: the process
becomes another one, of this module, that notes the stop and ends.
"""

import os
import signal
import sys
from types import FrameType


def heed_early_stop() -> None:
    """Handle SIGTERM until the attempt has begun, which has its own way to stop; one that was held back comes now."""
    signal.signal(signal.SIGTERM, _become_note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _become_note(_number: int, _frame: FrameType | None) -> None:
    os.execv(sys.executable, [sys.executable, "-m", "jobs.early_stop"])  # noqa: S606 - that is the point


def main() -> None:
    """Put the stop down for the job that PREFECT__FLOW_RUN_ID names."""
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
