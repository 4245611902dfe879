"""Names shared with Prefect: flows, the deployment of jobs, its queues, types and names of states, the page size.

Not imported from Prefect: the import takes a second and 100 MB, which the watchdog avoids.
"""

from enum import StrEnum
from typing import Any

FLOW_NAME = "finetune"  # the flow whose runs are jobs
RETRAIN_FLOW_NAME = "retrain"
DEPLOYMENT_NAME = f"{FLOW_NAME}/sft"  # as in prefect.yaml
# A priority is a work queue of the pool. Normal jobs are in the deployment's queue, as are those of the Prefect UI.
FIRST_QUEUE, LAST_QUEUE = "high", "low"
FIRST_RANK = 1  # a queue that is made without a rank is the last
PAGE_SIZE = 200  # Prefect's largest page


class RunState(StrEnum):
    """The type of a run's state; Prefect's `StateType`."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CRASHED = "CRASHED"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"


FINAL_STATES = (RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED)


class StateName(StrEnum):
    """Names of states that are more specific than their type."""

    AWAITING_RETRY = "AwaitingRetry"  # scheduled: has run before and will resume
    RETRYING = "Retrying"  # the same, set by Prefect's own retries
    CREATED = "Created"  # paused: a job that was created but not started
    LOST = "Lost"  # paused: a job that has run and waits to resume until its deployment exists again
    MADE_AGAIN = "MadeAgain"  # paused: a re-created run that is not mapped to its job yet


ONGOING_NAMES = (StateName.AWAITING_RETRY, StateName.RETRYING)


def make_state(kind: RunState, message: str | None = None, name: str | None = None) -> dict[str, Any]:
    """A state for Prefect's API; without a name it gets that of its type, such as `Cancelled`."""
    said = {} if message is None else {"message": message}
    return {"type": kind.value, "name": name or kind.capitalize(), **said}
