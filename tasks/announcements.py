"""Has the client told what happens in its job, when it asked for that; the watchdog calls the webhook."""

from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from jobs.spec import JobSpec
from jobs.webhooks.call import build_event_payload
from jobs.webhooks.outbox import put_delivery


def announce(connection: Connection, job_id: UUID, spec: JobSpec, event: str, details: dict[str, Any]) -> None:
    """Put down that the job's webhook is to be told of this event; once, however many attempts come by it."""
    if spec.webhook_url and event in (spec.webhook_events or ()):
        put_delivery(connection, job_id, spec.webhook_url, build_event_payload(job_id, event, details))
