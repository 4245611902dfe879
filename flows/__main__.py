"""`python -m flows`: the process of a job, Prefect's engine on the run that PREFECT__FLOW_RUN_ID names.

`python -m prefect.engine` does the same; this one starts sooner, and waits for a Prefect server that is away just then.
Given as a deployment's `command` (behind `jobs.keeper`) it also does without the supervisor that Prefect otherwise
starts before the engine, which imports Prefect a first time.
"""

import gc
import os
import runpy
import threading

from flows.waiting import wait_for_prefect
from jobs.early_stop import heed_early_stop
from jobs.keeper import end_with_parent
from jobs.network.proxies import bypass_proxies
from jobs.privacy import keep_private
from jobs.scratch import use_scratch

LEAVE_SECONDS = 20.0  # for what is left to say once the job is done
YOUNG_OBJECTS = 500_000  # made between two looks for garbage: the default of 700 costs a second while libraries load


def main() -> None:
    """Run the job to its end."""
    keep_private()
    end_with_parent()
    heed_early_stop()
    use_scratch()
    gc.set_threshold(YOUNG_OBJECTS)
    bypass_proxies(os.environ)
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
        raise
    finally:
        end_within(LEAVE_SECONDS)


def end_within(seconds: float) -> None:
    """End this process if it has not ended by then: at its exit a library may wait for a thread that waits for ever."""
    timer = threading.Timer(seconds, os._exit, (1,))
    timer.daemon = True
    timer.start()


if __name__ == "__main__":
    main()
