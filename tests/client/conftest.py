"""Both clients, called alike."""

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.client.scripted_service import MakeService, Scripted, ScriptedService
from tuneyard_client import AsyncTuneyard, Tuneyard

Call = Callable[..., Any]


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

    def call_sync(url: str, method: str, *args: Any, **kwargs: Any) -> Any:
        with Tuneyard(url, api_key="secret", timeout_seconds=5) as client:
            result = _find(client, method)(*args, **kwargs)
            return list(result) if inspect.isgenerator(result) else result

    async def call_async(url: str, method: str, *args: Any, **kwargs: Any) -> Any:
        async with AsyncTuneyard(url, api_key="secret", timeout_seconds=5) as client:
            result = _find(client, method)(*args, **kwargs)
            return [item async for item in result] if inspect.isasyncgen(result) else await result

    if request.param == "sync":
        return call_sync
    return lambda *args, **kwargs: asyncio.run(call_async(*args, **kwargs))


def _find(client: Any, method: str) -> Callable[..., Any]:
    for name in method.split("."):
        client = getattr(client, name)
    return client  # type: ignore[no-any-return]
