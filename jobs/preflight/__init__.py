"""What can be known of a job when it is submitted: what it names that is not there, what its workers can't do.

Nothing here loads a model or reads rows; a plan does. What is not known within the time is not said.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from jobs.preflight.adapters import check_adapter
from jobs.preflight.datasets import check_dataset
from jobs.preflight.findings import NO_DOUBTS, Doubts, Finding, SubmissionWarning
from jobs.preflight.models import check_model
from jobs.preflight.surroundings import Surroundings, find_surroundings
from jobs.preflight.templates import check_template
from jobs.preflight.workers import check_devices, check_output, check_tracking
from jobs.settings import Settings
from jobs.spec import JobSpec

__all__ = ["NO_DOUBTS", "Doubts", "Finding", "Preflight", "SubmissionWarning"]
logger = logging.getLogger(__name__)

SECONDS = 0.25  # for all of it; without findings it takes a few milliseconds
AT_WORK_AT_MOST = 64  # checks that hang on a file system or server; beyond that none are begun
CHECKS = (check_model, check_template, check_dataset, check_adapter, check_devices, check_output, check_tracking)


class _Answer(NamedTuple):
    """What a check finds, once it is done."""

    findings: list[Finding]
    done: threading.Event


class Preflight:
    """Looks at jobs before they are submitted. Thread-safe."""

    def __init__(self, settings: Settings, seconds: float = SECONDS) -> None:
        self._settings = settings
        self._seconds = seconds
        self._turns = threading.BoundedSemaphore(AT_WORK_AT_MOST)

    def look(self, spec: JobSpec) -> list[Finding]:
        """What would fail the job, in the order in which it would. Raises nothing and takes no longer than allowed."""
        return self.start(spec)()

    def start(self, spec: JobSpec) -> Callable[[], list[Finding]]:
        """`look`, begun: what it returns waits for the findings, no longer than allowed from now on."""
        deadline = time.monotonic() + self._seconds
        try:
            surroundings = find_surroundings(self._settings)
        except (OSError, ValueError) as error:  # a state folder that is being made or moved
            logger.debug("Nothing is known before a submission: %s", error)
            return list
        answers = [self._begin(number, spec, surroundings) for number in range(len(CHECKS))]

        def collect() -> list[Finding]:
            findings: list[Finding] = []
            for answer in answers:
                if answer is not None and answer.done.wait(max(0.0, deadline - time.monotonic())):
                    findings += answer.findings
            return findings

        return collect

    def _begin(self, number: int, spec: JobSpec, surroundings: Surroundings) -> _Answer | None:
        """Have a check made on a thread of its own, which may hang where this one may not."""
        if not self._turns.acquire(blocking=False):
            return None
        answer = _Answer([], threading.Event())

        def run() -> None:
            try:
                answer.findings.extend(CHECKS[number](spec, surroundings))
            except Exception as error:  # a check that fails knows nothing; the job itself will tell
                logger.debug("A check before a submission failed: %s: %s", type(error).__name__, error)
            finally:
                answer.done.set()
                self._turns.release()

        threading.Thread(target=run, name="preflight", daemon=True).start()
        return answer
