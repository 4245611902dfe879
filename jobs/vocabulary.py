"""The words shared with Prefect: flows, the deployment of jobs, types and names of states, the size of a page.

Written here, not taken from Prefect, whose import takes a second and 100 MB that the watchdog does without.
"""

from enum import StrEnum
from typing import Any

FLOW_NAME = "finetune"  # the flow whose runs are jobs
RETRAIN_FLOW_NAME = "retrain"
DEPLOYMENT_NAME = f"{FLOW_NAME}/sft"  # as prefect.yaml has it
PAGE_SIZE = 200  # the most that Prefect lists at once


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
    """Names of states that say more than the type does."""

    AWAITING_RETRY = "AwaitingRetry"  # scheduled: has begun before and goes on
    RETRYING = "Retrying"  # the same, as Prefect's own retries say it
    CREATED = "Created"  # paused: a job made but not started
    LOST = "Lost"  # paused: a job that has begun, is to go on and must wait for another deployment
    MADE_AGAIN = "MadeAgain"  # paused: a run that is not known yet to stand for its job


ONGOING_NAMES = (StateName.AWAITING_RETRY, StateName.RETRYING)


def make_state(kind: RunState, message: str | None = None, name: str | None = None) -> dict[str, Any]:
    """A state as Prefect's API takes it; without a name it is called as its type, `Cancelled`, say."""
    said = {} if message is None else {"message": message}
    return {"type": kind.value, "name": name or kind.capitalize(), **said}
