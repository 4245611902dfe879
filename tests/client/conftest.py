"""Both clients, called alike."""

from collections.abc import Iterator

import pytest

from tests.client.calling import Call, make_call
from tests.client.scripted_service import MakeService, Scripted, ScriptedService


@pytest.fixture
def service() -> Iterator[MakeService]:
    """Starts a service with these answers."""
    started: list[ScriptedService] = []

    def start(*answers: Scripted) -> ScriptedService:
        started.append(ScriptedService(*answers))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Call:
    """`call(url, "job", id)`: a method of either client, its result awaited, an iterator as a list."""

    return make_call(request.param, timeout_seconds=30)
