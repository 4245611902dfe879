"""Waiting, and work that takes long, with and without asyncio: the words in which the two clients differ."""

import asyncio
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

sleep, async_sleep = time.sleep, asyncio.sleep


def run(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do it here."""
    return work(*args, **kwargs)


async_run = asyncio.to_thread
