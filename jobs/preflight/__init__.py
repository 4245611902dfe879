"""Checks of a job at its submission: things it names that do not exist, and options its workers do not support.

They load no model and read no rows, which a plan does. What is not known within SECONDS is not reported.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from jobs.daemon_threads import DaemonThreads
from jobs.preflight.adapters import check_adapter
from jobs.preflight.context import CheckContext, find_context
from jobs.preflight.datasets import check_dataset
from jobs.preflight.findings import NO_CHECK, Finding, SubmissionCheck, SubmissionWarning
from jobs.preflight.models import check_model
from jobs.preflight.templates import check_template
from jobs.preflight.workers import check_devices, check_output, check_tracking
from jobs.settings import Settings
from jobs.spec import JobSpec

__all__ = ["NO_CHECK", "Finding", "Preflight", "SubmissionCheck", "SubmissionWarning"]
logger = logging.getLogger(__name__)

Check = Callable[[JobSpec, CheckContext], Iterable[Finding]]

SECONDS = 0.25  # for all checks; without findings they take a few milliseconds
MAX_RUNNING = 64  # groups of checks, which may hang on a file system or server; beyond that none are started
# Groups, each run by one thread: checks of a group read the same place, and would hang together.
CHECKS: tuple[tuple[Check, ...], ...] = (
    (check_model, check_template),
    (check_dataset,),
    (check_adapter, check_devices, check_output, check_tracking),
)

_threads = DaemonThreads("preflight")


class _Outcome(NamedTuple):
    """The findings of a check, valid once it is done."""

    findings: list[Finding]
    done: threading.Event


class Preflight:
    """Check jobs before they are submitted. Thread-safe."""

    def __init__(self, settings: Settings, seconds: float = SECONDS) -> None:
        self._settings = settings
        self._seconds = seconds
        self._slots = threading.BoundedSemaphore(MAX_RUNNING)

    def run(self, spec: JobSpec) -> list[Finding]:
        """Find what would fail the job, first failure first. Raises nothing and takes at most the allowed time."""
        return self.start(spec)()

    def start(self, spec: JobSpec) -> Callable[[], list[Finding]]:
        """Start the checks; returns a function that waits for the findings, at most the allowed time from now."""
        deadline = time.monotonic() + self._seconds
        try:
            context = find_context(self._settings)
        except (OSError, ValueError) as error:  # the state folder is being created or moved
            logger.debug("No checks before a submission: %s", error)
            return list
        outcomes = [outcome for checks in CHECKS for outcome in self._begin(checks, spec, context)]

        def collect() -> list[Finding]:
            findings: list[Finding] = []
            for outcome in outcomes:
                if outcome.done.wait(max(0.0, deadline - time.monotonic())):
                    findings += outcome.findings
            return findings

        return collect

    def _begin(self, checks: Sequence[Check], spec: JobSpec, context: CheckContext) -> list[_Outcome]:
        """Start checks on another thread, which may hang; none if MAX_RUNNING are running."""
        if not self._slots.acquire(blocking=False):
            return []
        outcomes = [_Outcome([], threading.Event()) for _ in checks]

        def run() -> None:
            try:
                for check, outcome in zip(checks, outcomes, strict=True):
                    _run(check, spec, context, outcome)
            finally:
                self._slots.release()

        try:
            _threads.start(run)
        except RuntimeError:  # no more threads
            self._slots.release()
            return []
        return outcomes


def _run(check: Check, spec: JobSpec, context: CheckContext, outcome: _Outcome) -> None:
    try:
        outcome.findings.extend(check(spec, context))
    except Exception as error:  # a failed check has no findings; the job itself will fail if it must
        logger.debug("A check before a submission failed: %s: %s", type(error).__name__, error)
    finally:
        outcome.done.set()
