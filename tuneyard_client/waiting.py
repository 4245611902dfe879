"""Sleep and run blocking work: the blocking and asyncio variants for the two clients."""

import asyncio
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

sleep, async_sleep = time.sleep, asyncio.sleep


def run(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `work` in the current thread."""
    return work(*args, **kwargs)


async_run = asyncio.to_thread
