"""`python -m jobs.requeue`: puts a run back into the queue that its worker should not have taken (`jobs.worker_limit`).

Run by the job's keeper. The run keeps its place: it is scheduled for its original time.
"""

import os
import sys

from jobs.engine.credentials import open_client
from jobs.engine.pool_runs import PoolRuns, StateRefused
from jobs.engine.processes import VARIABLE
from jobs.settings import Settings
from jobs.vocabulary import RunState, make_state

MESSAGE = "Its worker was at another job; a worker that takes one job at a time needs `--limit 1`."


def main() -> None:
    """Put it back, unless it has changed meanwhile."""
    settings = Settings()
    with open_client(settings) as client:
        runs = PoolRuns(client, settings.work_pool)
        (run,) = runs.find({"id": {"any_": [os.environ[VARIABLE]]}})
        if run["state_type"] != RunState.PENDING:
            return
        runs.forget_process(run["id"])  # a cancellation would wait for it
        details = {"scheduled_time": run["expected_start_time"]}
        try:
            runs.set_state(run["id"], {**make_state(RunState.SCHEDULED, MESSAGE), "state_details": details})
        except StateRefused as error:
            sys.stderr.write(f"The run was not put back into the queue: {error}\n")


if __name__ == "__main__":
    main()
