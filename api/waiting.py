"""Runs work in a thread while its client waits, and ends it when the client disconnects."""

import threading
from collections.abc import Callable
from typing import TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

T = TypeVar("T")
DISCONNECT_POLL_SECONDS = 0.25


async def run_for_client(
    request: Request, work: Callable[[Callable[[], bool]], T], limiter: CapacityLimiter, ends: type[Exception]
) -> T:
    """Run `work`, which is given a function that tells whether the client has gone, and return its result.

    Args:
        limiter: of threads for such work alone, so that what waits does not take those of the other routes.
        ends: what `work` raises once the client has gone.

    Raises:
        ClientDisconnect: the client has gone.
    """
    gone = threading.Event()
    result: list[T] = []
    problem: Exception | None = None

    async def watch() -> None:
        while not await request.is_disconnected():
            await anyio.sleep(DISCONNECT_POLL_SECONDS)
        gone.set()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                result.append(await to_thread.run_sync(work, gone.is_set, limiter=limiter, abandon_on_cancel=True))
            except Exception as error:  # a task group would wrap it
                problem = error
            tasks.cancel_scope.cancel()
    finally:
        gone.set()
    if isinstance(problem, ends):
        raise ClientDisconnect from problem
    if problem is not None:
        raise problem
    return result[0]
