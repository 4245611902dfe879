"""A database of an earlier version is brought up to date with what it holds."""

from pathlib import Path
from uuid import uuid4

import alembic.command
import alembic.config
import pytest
from sqlalchemy import text

import jobs
from jobs.outbox import add_delivery, list_deliveries
from jobs.postgres import ensure_databases, sibling_url
from jobs.store import engine_for, migrate

pytestmark = pytest.mark.stack

INSERT = """
INSERT INTO webhook_deliveries (id, job_id, status, url, payload, state, attempts, expires_at)
VALUES (:id, :job_id, 'failed', :url, '{}', 'delivered', '[]', now())
"""


@pytest.fixture
def engine(stack):
    """Of a database as it was before webhooks were told of more than ends."""
    ensure_databases(stack.database_url, ["earlier"])
    engine = engine_for(sibling_url(stack.database_url, "earlier"))
    config = alembic.config.Config()
    config.set_main_option("script_location", str(Path(jobs.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        alembic.command.upgrade(config, "0003")
    return engine


def test_deliveries_of_before_are_of_ends_and_are_not_told_again(engine, stack):
    job_id, url = uuid4(), "http://127.0.0.1:1/"
    row = {"id": uuid4(), "job_id": job_id, "url": url}
    with engine.begin() as connection:
        connection.execute(text(INSERT), row)
    migrate(sibling_url(stack.database_url, "earlier"))
    (delivery,) = list_deliveries(engine, job_id)
    assert (delivery.event, delivery.event_key, delivery.state) == ("ended", "failed", "delivered")
    assert not add_delivery(engine, job_id, url, {"job_id": str(job_id), "status": "failed"})
