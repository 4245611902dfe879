"""Has the client told that its job has ended. A state hook of the flow: the run is already in its last state."""

from typing import Any

from prefect.client.schemas.objects import FlowRun, State

from jobs.outbox import add_delivery
from jobs.progress import read_reports
from jobs.settings import Settings
from jobs.status import status_of
from jobs.store import engine_for
from jobs.webhook import build_payload


def notify(flow: Any, flow_run: FlowRun, state: State[Any]) -> None:
    """Put down that the job's webhook, if it has one, is to be called; the watchdog calls it."""
    url = flow_run.parameters.get("webhook_url")
    database_url = Settings().database_url
    if not url or database_url is None:
        return
    engine = engine_for(database_url)
    status = status_of(state.type.value, state.name or "", has_free_slot=False)
    report = read_reports(engine, [flow_run.id]).get(flow_run.id)
    add_delivery(engine, flow_run.id, url, build_payload(flow_run.id, status.value, report, state.message))
