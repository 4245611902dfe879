"""A database of a test's own beside the shared stack."""

from uuid import uuid4

import pytest

from jobs.stack.database_urls import sibling_url
from jobs.stack.postgres import ensure_databases
from jobs.storage.bounded_postgres import bounded_engine_for
from jobs.storage.tables import engine_for, migrate


@pytest.fixture
def own_database(stack, tmp_path):
    """The stack's settings with a database and a state folder of their own, for keys and reports of this test alone."""
    url = sibling_url(stack.database_url, f"own_{uuid4().hex}")
    ensure_databases(stack.database_url, [url.split("?")[0].rsplit("/", 1)[-1]])
    migrate(url)
    yield stack.model_copy(update={"database_url": url, "home": tmp_path / "home"})
    engine_for(url).dispose()
    bounded_engine_for(url).dispose()
