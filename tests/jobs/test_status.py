"""The table of job states covers everything Prefect can say."""

import pytest
from prefect import states
from prefect.client.schemas.objects import TERMINAL_STATES, StateType
from prefect.settings import get_current_settings

from flows.finetune import finetune
from flows.retrain import retrain
from jobs.stack.deployments import read_deployments
from jobs.status import SFT_STATUS_NAMES, TRAIN_STATUS_NAMES, JobStatus, status_of
from jobs.vocabulary import (
    DEPLOYMENT_NAME,
    FINAL_STATES,
    FLOW_NAME,
    PAGE_SIZE,
    RETRAIN_FLOW_NAME,
    RunState,
    StateName,
    make_state,
)


def test_the_words_are_prefects_own():
    assert [*RunState] == [kind.value for kind in StateType]
    assert {*FINAL_STATES} == {kind.value for kind in TERMINAL_STATES - {StateType.CRASHED}}
    assert get_current_settings().server.api.default_limit == PAGE_SIZE
    for made in (states.Cancelled(), states.Crashed(), states.Failed(), states.Running(), states.Scheduled()):
        assert make_state(RunState(made.type.value)) == {"type": made.type.value, "name": made.name}
    assert states.AwaitingRetry().name == StateName.AWAITING_RETRY
    assert states.Retrying().name == StateName.RETRYING
    deployments = [f"{entry['entrypoint'].rpartition('.')[2]}/{entry['name']}" for entry in read_deployments()]
    assert deployments == [DEPLOYMENT_NAME, f"{RETRAIN_FLOW_NAME}/retrain"]
    assert (finetune.name, retrain.name) == (FLOW_NAME, RETRAIN_FLOW_NAME)


@pytest.mark.parametrize("has_free_slot", [True, False])
@pytest.mark.parametrize("state_type", list(StateType))
def test_every_prefect_state_has_a_status_in_both_dialects(state_type, has_free_slot):
    status = status_of(state_type.value, state_type.value.title(), has_free_slot)

    assert TRAIN_STATUS_NAMES[status] in {"created", "queued", "running", "cancelled", "completed", "failed"}
    assert SFT_STATUS_NAMES[status] in {"pending", "running", "stopped", "completed", "failed"}


@pytest.mark.parametrize(
    ("state", "has_free_slot", "status", "train_word", "sft_word"),
    [
        (states.Paused(name=StateName.CREATED), False, JobStatus.CREATED, "created", "pending"),
        (states.Paused(), True, JobStatus.QUEUED, "queued", "pending"),
        (states.Suspended(), True, JobStatus.QUEUED, "queued", "pending"),
        (states.Scheduled(), False, JobStatus.QUEUED, "queued", "pending"),
        (states.Scheduled(), True, JobStatus.STARTING, "running", "running"),
        (states.Late(), False, JobStatus.QUEUED, "queued", "pending"),
        (states.AwaitingConcurrencySlot(), False, JobStatus.QUEUED, "queued", "pending"),
        (states.AwaitingRetry(), False, JobStatus.RUNNING, "running", "running"),
        (states.Pending(), False, JobStatus.STARTING, "running", "running"),
        (states.Running(), False, JobStatus.RUNNING, "running", "running"),
        (states.Retrying(), False, JobStatus.RUNNING, "running", "running"),
        (states.Cancelling(), False, JobStatus.CANCELLED, "cancelled", "stopped"),
        (states.Cancelled(), False, JobStatus.CANCELLED, "cancelled", "stopped"),
        (states.Completed(), False, JobStatus.COMPLETED, "completed", "completed"),
        (states.Failed(), False, JobStatus.FAILED, "failed", "failed"),
        (states.Failed(name="TimedOut"), False, JobStatus.FAILED, "failed", "failed"),
        (states.Crashed(), False, JobStatus.RUNNING, "running", "running"),
    ],
)
def test_the_designs_table(state, has_free_slot, status, train_word, sft_word):
    found = status_of(state.type.value, state.name, has_free_slot)

    assert (found, TRAIN_STATUS_NAMES[found], SFT_STATUS_NAMES[found]) == (status, train_word, sft_word)


def test_only_ended_jobs_are_terminal():
    assert {status for status in JobStatus if status.is_terminal} == {
        JobStatus.COMPLETED,
        JobStatus.FAILED,
        JobStatus.CANCELLED,
    }
