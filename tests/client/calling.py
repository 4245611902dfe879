"""A method of either client, called alike."""

import asyncio
import inspect
from collections.abc import Callable
from typing import Any, Literal

from tuneyard_client import AsyncTuneyard, Tuneyard

Call = Callable[..., Any]


def make_call(kind: Literal["sync", "async"], timeout_seconds: float) -> Call:
    """`call(url, "configs.get", id)`: a method of either client, its result awaited, an iterator as a list."""

    def call_sync(url: str, method: str, *args: Any, **kwargs: Any) -> Any:
        with Tuneyard(url, api_key="secret", timeout_seconds=timeout_seconds) as client:
            result = _find(client, method)(*args, **kwargs)
            return list(result) if inspect.isgenerator(result) else result

    async def call_async(url: str, method: str, *args: Any, **kwargs: Any) -> Any:
        async with AsyncTuneyard(url, api_key="secret", timeout_seconds=timeout_seconds) as client:
            result = _find(client, method)(*args, **kwargs)
            return [item async for item in result] if inspect.isasyncgen(result) else await result

    if kind == "sync":
        return call_sync
    return lambda *args, **kwargs: asyncio.run(call_async(*args, **kwargs))


def _find(client: Any, method: str) -> Call:
    for name in method.split("."):
        client = getattr(client, name)
    return client  # type: ignore[no-any-return]
