"""What a client sees of all jobs: a thread that asks both interfaces in turn and keeps what has changed."""

import threading
import time
from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import httpx

POLL_SECONDS = 1.0
PAGE = 50
ENDED = ("completed", "failed", "cancelled")
SAME_WORDS = {"pending": "queued", "stopped": "cancelled"}  # the SFT API's words in the Training API's


@dataclass(frozen=True)
class Sight:
    """A job as one answer showed it; `at` is in seconds of `time.monotonic`."""

    at: float
    status: str
    attempt: int | None = None
    phase: str | None = None
    step: int | None = None
    total_steps: int = 1
    error_code: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the status is one that no job leaves."""
        return self.status in ENDED

    @classmethod
    def of(cls, at: float, job: dict[str, Any]) -> "Sight":
        """From either interface's view of a job."""
        progress = job["progress"] or {}
        status = SAME_WORDS.get(job["status"], job["status"])
        step, total = progress.get("step"), progress.get("total_steps", 1)
        return cls(at, status, job["attempt"], job["phase"], step, total, job["error_code"])


class Watcher(threading.Thread):
    """`sights` has each job's changes in order, `polls` when answers were asked for that came."""

    def __init__(self, url: str) -> None:
        super().__init__(name="watcher")
        self.sights: dict[str, list[Sight]] = defaultdict(list)
        self.polls: list[float] = []
        self.unlisted: set[str] = set()  # jobs whose runs were deleted: they are asked for one by one
        self.cancelled: set[str] = set()  # whose runs may have been deleted, with the deployment, just before
        self._client = httpx.Client(base_url=url, timeout=20)
        self._stopped = threading.Event()

    def run(self) -> None:
        """Ask until `close`; while the API is away nothing is seen."""
        doors = ("/train", "/api/sft/jobs")
        while not self._stopped.wait(POLL_SECONDS):
            try:
                self.look(doors[len(self.polls) % 2])
            except httpx.HTTPError:
                continue

    def look(self, path: str) -> None:
        """Read every page of one list. Raises httpx.HTTPError."""
        asked_at, listed = time.monotonic(), set[str]()
        cursor: str | None = None
        while True:
            wanted = {"limit": PAGE} | ({"cursor": cursor} if cursor else {})
            answer = self._client.get(path, params=wanted).raise_for_status()
            at, found = time.monotonic(), answer.json()
            for job in found if isinstance(found, list) else found["jobs"]:
                self.keep(job["job_id"], Sight.of(at, job))
                listed.add(job["job_id"])
            cursor = answer.headers.get("X-Next-Cursor")
            if cursor is None:
                break
        self.unlisted |= set(self.cancelled) - listed
        for job_id in list(self.unlisted):
            answer = self._client.get(f"/train/{job_id}").raise_for_status()
            self.keep(job_id, Sight.of(time.monotonic(), answer.json()))
        self.polls.append(asked_at)

    def keep(self, job_id: str, sight: Sight) -> None:
        """Add it to the job's history if it shows anything new."""
        history = self.sights[job_id]
        if not history or replace(sight, at=history[-1].at) != history[-1]:
            history.append(sight)

    def last(self, job_id: str) -> Sight | None:
        """The job as it was seen last."""
        history = self.sights.get(job_id)
        return history[-1] if history else None

    def second_poll_after(self, moment: float) -> float:
        """When the second list after `moment` was asked for; infinity when none was."""
        index = bisect_right(self.polls, moment) + 1
        return self.polls[index] if index < len(self.polls) else float("inf")

    def close(self) -> None:
        """Stop asking."""
        self._stopped.set()
        self.join()
        self._client.close()
