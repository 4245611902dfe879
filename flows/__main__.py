"""`python -m flows`: a job's process: runs Prefect's engine for the flow run in PREFECT__FLOW_RUN_ID.

It does what `python -m prefect.engine` does, but starts faster and waits for a Prefect server that is down. As the
deployment's `command` (through `jobs.keeper`) it also avoids the supervisor process that Prefect otherwise starts
before the engine, and that imports Prefect too.
"""

import gc
import os
import runpy
import sys
import threading

from flows.waiting import wait_for_prefect
from jobs.early_stop import record_early_stop
from jobs.keeper import end_with_parent
from jobs.network.proxies import bypass_proxies
from jobs.privacy import keep_private
from jobs.project import PROJECT_ROOT
from jobs.scratch import use_scratch
from jobs.url_credentials import take_prefects_credentials

LEAVE_SECONDS = 20.0  # for the last log lines and reports once the job is done
YOUNG_OBJECTS = 500_000  # objects between garbage collections: the default of 700 costs a second during imports


def main() -> None:
    """Run the job to its end."""
    keep_private()
    end_with_parent()
    os.chdir(PROJECT_ROOT)  # the worker's folder for this run goes with it, and relative settings must not be in there
    record_early_stop()
    use_scratch()
    gc.set_threshold(YOUNG_OBJECTS)
    bypass_proxies(os.environ)
    take_prefects_credentials(os.environ)
    wait_for_prefect()
    from jobs.sanitizing.log_lines import keep_lines_whole
    from tasks.failure_log import write_failures_once  # imports Prefect, which takes a second or two

    keep_lines_whole()
    write_failures_once()
    try:
        runpy.run_module("prefect.engine", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        from tasks.refusal import fail_if_refused

        fail_if_refused(end)
        if end.code and _has_concluded():
            sys.exit(0)  # Prefect's exit code shows a failed flow as a crash, unless a process worker has started it
        raise
    finally:
        end_within(LEAVE_SECONDS)


def _has_concluded() -> bool:
    """Whether the job has ended or its attempt has recorded why it ended; False if that is unknown."""
    from uuid import UUID

    from sqlalchemy.exc import SQLAlchemyError

    from jobs.lifecycle.attempts import has_concluded
    from jobs.settings import Settings
    from jobs.storage.tables import engine_for

    database_url = Settings().database_url
    try:
        return database_url is not None and has_concluded(
            engine_for(database_url), UUID(os.environ["PREFECT__FLOW_RUN_ID"])
        )
    except SQLAlchemyError:
        return False


def end_within(seconds: float) -> None:
    """Exit within this time even if a library's exit handler waits for a thread forever."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
