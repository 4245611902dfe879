"""Has the client told that its job has ended. A state hook of the flow: the run is already in its last state."""

from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled

from jobs.outbox import add_delivery
from jobs.progress import read_reports
from jobs.settings import Settings
from jobs.status import status_of
from jobs.store import engine_for
from jobs.webhook import build_payload


def notify(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Put down that the job's webhook, if it has one, is to be called; the watchdog calls it."""
    if state.is_crashed() and _was_cancelled(flow_run):
        state = Cancelled()
    url = flow_run.parameters.get("webhook_url")
    database_url = Settings().database_url
    if not url or database_url is None:
        return
    engine = engine_for(database_url)
    status = status_of(state.type.value, state.name or "", has_free_slot=False)
    report = read_reports(engine, [flow_run.id]).get(flow_run.id)
    add_delivery(engine, flow_run.id, url, build_payload(flow_run.id, status.value, report, state.message))


def _was_cancelled(flow_run: FlowRun) -> bool:
    """Whether somebody cancelled a run that Prefect calls crashed, which is then put right.

    A worker that is slow to take note of a cancellation takes the end of the process it has stopped for a crash.
    """
    with get_client(sync_client=True) as client:
        if all(passed.type is not StateType.CANCELLING for passed in client.read_flow_run_states(flow_run.id)):
            return False
        client.set_flow_run_state(flow_run.id, Cancelled(), force=True)
        return True
