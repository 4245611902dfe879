"""Those who use the service meanwhile: a thread that posts jobs and cancels some of them at random moments."""

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import httpx

from tests.chaos.service import MODEL, Service
from tests.chaos.watcher import Watcher

LINE = 6  # so many jobs are waiting or running, while there are any left to post
PAUSE_SECONDS = 0.3
SMALL = {
    "model_name": MODEL,
    "dataset_version": "v1.1",
    "template": "chatml",
    "max_samples": 40,
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "mixed_precision": "none",  # no probe
    "save_steps": 4,
}


@dataclass(frozen=True)
class Wish:
    """A job that somebody wants; `cancel` is when to cancel it, so many seconds after it was first seen like that."""

    key: str  # Idempotency-Key: an answer may be lost
    body: dict[str, Any]
    cancel: Literal["queued", "running"] | None = None
    cancel_after_seconds: float = 0.0
    takes_added: bool = False  # on a version that somebody has added meanwhile, if there is any


def draw_wishes(count: int, service: Service, rng: random.Random) -> list[Wish]:
    """Jobs of a few seconds of training each; one in ten is cancelled while it waits, one in ten while it runs."""
    wishes = []
    for number in range(count):
        receiver = service.moody if number % 4 == 1 else service.friendly
        body = SMALL | {
            "lora_name": f"chaos-{number % 7}",
            "max_steps": rng.randrange(10, 40),
            "seed": number,
            "webhook_url": receiver.url,
            "priority": rng.choice(["normal", "normal", "normal", "high", "low"]),
        }
        wishes.append(Wish(f"chaos {number}", body, takes_added=number % 3 == 2))
    picked = rng.sample(range(count), max(2, count // 5))
    for index, number in enumerate(picked):
        is_queued = index % 2 == 0
        when: Literal["queued", "running"] = "queued" if is_queued else "running"
        seconds = rng.uniform(0, 3 if is_queued else 15)
        wishes[number] = replace(wishes[number], cancel=when, cancel_after_seconds=seconds)
    return wishes


@dataclass
class Clients(threading.Thread):
    """`accepted` has each accepted job's wish by id, `cancelled` those whose cancellation was confirmed."""

    url: str  # of the API
    watcher: Watcher
    wishes: list[Wish]
    deadline: float
    line: int = LINE
    find_added: Callable[[], str | None] = lambda: None
    accepted: dict[str, Wish] = field(default_factory=dict)
    accepted_at: dict[str, float] = field(default_factory=dict)
    cancelled: set[str] = field(default_factory=set)
    failure: str | None = None

    def __post_init__(self) -> None:
        super().__init__(name="clients")
        self._client = httpx.Client(base_url=self.url, timeout=30)
        self._to_cancel: dict[str, Wish] = {}

    def __hash__(self) -> int:
        return id(self)

    def run(self) -> None:
        """Until every job is posted and every cancellation done with, or the deadline."""
        waiting = list(self.wishes)
        with self._client:
            while (waiting or self._to_cancel) and time.monotonic() < self.deadline:
                if waiting and self.count_unfinished() < self.line:
                    self._post(waiting.pop(0))
                for job_id, wish in list(self._to_cancel.items()):
                    if self._is_due(job_id, wish):
                        del self._to_cancel[job_id]
                        self._cancel(job_id)
                time.sleep(PAUSE_SECONDS)

    def close(self) -> None:
        """Give up what is left to do."""
        self.deadline = 0.0
        self.join()

    def count_unfinished(self) -> int:
        """How many accepted jobs have not ended, as far as anybody has seen."""
        return len(self.accepted) - self.count_ended()

    def count_ended(self) -> int:
        """How many accepted jobs were seen to have ended."""
        lasts = [self.watcher.last(job_id) for job_id in list(self.accepted)]
        return sum(last is not None and last.has_ended for last in lasts)

    def have_all_ended(self) -> bool:
        """Whether nothing is left to happen."""
        return len(self.accepted) == len(self.wishes) == self.count_ended()

    def _post(self, wish: Wish) -> None:
        added = self.find_added() if wish.takes_added else None
        body = wish.body | ({"dataset_version": added} if added else {})

        def post() -> httpx.Response:
            return self._client.post("/train", json=body, headers={"Idempotency-Key": wish.key})

        answer = self._insist(post)
        if answer is None or answer.status_code != httpx.codes.OK:
            self.failure = f"a job was not taken: {answer and answer.text}"
            return
        job_id = answer.json()["job_id"]
        self.accepted[job_id] = wish
        self.accepted_at[job_id] = time.monotonic()
        if wish.cancel:
            self._to_cancel[job_id] = wish

    def _is_due(self, job_id: str, wish: Wish) -> bool:
        if wish.cancel == "queued":
            since: float | None = self.accepted_at[job_id]
        else:
            sights = self.watcher.sights.get(job_id, [])
            since = next((sight.at for sight in list(sights) if sight.status != "queued"), None)
        return since is not None and time.monotonic() >= since + wish.cancel_after_seconds

    def _cancel(self, job_id: str) -> None:
        answer = self._insist(lambda: self._client.delete(f"/train/{job_id}"))
        if answer is not None and answer.status_code == httpx.codes.OK:
            self.cancelled.add(job_id)
            self.watcher.cancelled.add(job_id)

    def _insist(self, request: Callable[[], httpx.Response]) -> httpx.Response | None:
        return insist(request, lambda: time.monotonic() < self.deadline)


def insist(request: Callable[[], httpx.Response], may_go_on: Callable[[], bool]) -> httpx.Response | None:
    """The first answer that is the service's own word, however often that takes; None once it may not go on."""
    while may_go_on():
        try:
            answer = request()
        except httpx.TransportError:
            pass
        else:
            if not answer.is_server_error:
                return answer
        time.sleep(PAUSE_SECONDS)
    return None


def ask(api: httpx.Client, path: str, seconds: float) -> httpx.Response:
    """The service's own word at this path. Raises TimeoutError when it has none within so many seconds."""
    deadline = time.monotonic() + seconds
    answer = insist(lambda: api.get(path), lambda: time.monotonic() < deadline)
    if answer is None:
        raise TimeoutError(f"nothing but errors at {path} for {seconds:.0f} s")
    return answer


def list_jobs(api: httpx.Client, seconds: float) -> list[str]:
    """Ids of the jobs that the service lists. Raises TimeoutError when it has no list within so many seconds."""
    return [job["job_id"] for job in ask(api, "/train", seconds).raise_for_status().json()]
