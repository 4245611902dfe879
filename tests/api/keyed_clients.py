"""Clients of an API of a test's own, each with a key of its own."""

from fastapi.testclient import TestClient

from api.main import create_app
from jobs.clients.keys import KeyScope, create_key
from jobs.settings import Settings
from jobs.storage.tables import engine_for


def make_clients(settings: Settings, **scopes: KeyScope) -> list[TestClient]:
    """A client for each name, in this order; its key has the name and the scope."""
    engine, app = engine_for(str(settings.database_url)), create_app(settings)
    return [
        TestClient(app, headers={"Authorization": f"Bearer {create_key(engine, name, scope)[1]}"})
        for name, scope in scopes.items()
    ]
