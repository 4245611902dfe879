"""Claim a job for this process, when no other process works on it."""

import time
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from sqlalchemy import Connection, Engine

from jobs.storage.claims import BUSY, claim
from jobs.storage.connections import wait_for_database
from sft.errors import StackError

T = TypeVar("T")

WAIT_SECONDS, PAUSE_SECONDS = 90.0, 2.0  # for a process that still works on the job


class ClaimRefused(Exception):
    """The job's final status, or why this process can't have the job."""


def claim_when_free(
    engine: Engine, run_id: UUID, then: Callable[[Connection], T], pause: Callable[[float], None] = time.sleep
) -> T:
    """Claim the run's job and do something in the same transaction, in which nobody else can claim it.

    Waits for the database, and for a process that works on the job.

    Raises:
        ClaimRefused: the job has ended, or this process can't have it.
        StackError: the database can't be reached, or another process works on the job for too long.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        with wait_for_database(engine) as connection:
            refusal = claim(connection, run_id)
            if refusal is None:
                return then(connection)
        if refusal != BUSY:
            raise ClaimRefused(refusal)
        if time.monotonic() > deadline:
            raise StackError(f"another process has been working on the job of run {run_id} for {WAIT_SECONDS:.0f} s")
        pause(PAUSE_SECONDS)
