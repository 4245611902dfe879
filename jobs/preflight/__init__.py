"""What can be known of a job when it is submitted: what it names that is not there, what its workers can't do.

Nothing here loads a model or reads rows; a plan does. What is not known within the time is not said.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from jobs.daemon_threads import DaemonThreads
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

Check = Callable[[JobSpec, Surroundings], Iterable[Finding]]

SECONDS = 0.25  # for all of it; without findings it takes a few milliseconds
AT_WORK_AT_MOST = 64  # groups of checks that hang on a file system or server; beyond that none are begun
# Those beside each other look at one place, on one thread: where it hangs, none of them would get further.
CHECKS: tuple[tuple[Check, ...], ...] = (
    (check_model, check_template),
    (check_dataset,),
    (check_adapter, check_devices, check_output, check_tracking),
)

_threads = DaemonThreads("preflight")


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
        answers = [answer for checks in CHECKS for answer in self._begin(checks, spec, surroundings)]

        def collect() -> list[Finding]:
            findings: list[Finding] = []
            for answer in answers:
                if answer.done.wait(max(0.0, deadline - time.monotonic())):
                    findings += answer.findings
            return findings

        return collect

    def _begin(self, checks: Sequence[Check], spec: JobSpec, surroundings: Surroundings) -> list[_Answer]:
        """Have checks made on a thread of their own, which may hang where this one may not; none if too many do."""
        if not self._turns.acquire(blocking=False):
            return []
        answers = [_Answer([], threading.Event()) for _ in checks]

        def run() -> None:
            try:
                for check, answer in zip(checks, answers, strict=True):
                    _make(check, spec, surroundings, answer)
            finally:
                self._turns.release()

        try:
            _threads.start(run)
        except RuntimeError:  # this machine gives no more threads
            self._turns.release()
            return []
        return answers


def _make(check: Check, spec: JobSpec, surroundings: Surroundings, answer: _Answer) -> None:
    try:
        answer.findings.extend(check(spec, surroundings))
    except Exception as error:  # a check that fails knows nothing; the job itself will tell
        logger.debug("A check before a submission failed: %s: %s", type(error).__name__, error)
    finally:
        answer.done.set()
