"""`PoolReader`: reads a work pool, its queues and its workers from Prefect, for `jobs.engine.capacity`."""

import threading
import time
from collections.abc import Iterable

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import WorkerStatus, WorkPool, WorkQueue
from prefect.exceptions import ObjectAlreadyExists

from jobs.engine.blockers import Blockers, describe_missing, describe_no_worker, find_blocker
from jobs.engine.capacity import Pool, count_slots
from jobs.engine.prefect_client import call, means_missing
from jobs.vocabulary import PAGE_SIZE
from sft.errors import StackError

POOL_TTL_SECONDS = 5.0  # reading the pool takes three requests; with 2 s one response in fifty would be slower


def describe_pool(pool: WorkPool, queues: Iterable[WorkQueue], online_workers: int) -> Pool:
    """Apply the rule of `jobs.engine.capacity` to a work pool as Prefect describes it."""
    queues = [*queues]
    slots = count_slots(pool.type, pool.concurrency_limit, online_workers)
    blocker = find_blocker(f"the work pool {pool.name}", pool.is_paused, pool.concurrency_limit)
    if blocker is None and slots == 0:
        blocker = describe_no_worker(pool.name)
    found = {
        queue.name: find_blocker(f"the work queue {queue.name}", queue.is_paused, queue.concurrency_limit)
        for queue in queues
    }
    return Pool(
        0 if blocker else slots,
        {queue.name: queue.priority or 1 for queue in queues},
        Blockers(blocker, {name: said for name, said in found.items() if said}),
        {queue.name: queue.concurrency_limit for queue in queues if queue.concurrency_limit is not None},
    )


class PoolReader:
    """Reads one work pool from Prefect, at most every few seconds. Thread-safe. Raises StackError."""

    def __init__(self, client: SyncPrefectClient, work_pool: str) -> None:
        self._client = client
        self._name = work_pool
        self._known: tuple[float, Pool] | None = None
        self._lock = threading.Lock()

    def read(self) -> Pool:
        """The work pool, cached for a few seconds. A paused one, and one without a worker, has no slots."""
        with self._lock:
            if self._known is None or time.monotonic() - self._known[0] > POOL_TTL_SECONDS:
                self._known = (time.monotonic(), self._read())
            return self._known[1]

    def _read(self) -> Pool:
        try:
            pool = call(lambda: self._client.read_work_pool(self._name))
            queues = call(lambda: self._client.read_work_queues(self._name))
            # The server sorts by heartbeat: offline workers, which it keeps for ever, come last.
            workers = call(lambda: self._client.read_workers_for_work_pool(self._name, limit=PAGE_SIZE))
        except StackError as error:
            if not means_missing(error):
                raise
            return Pool(0, {}, Blockers(describe_missing(self._name)))
        return describe_pool(pool, queues, sum(worker.status is WorkerStatus.ONLINE for worker in workers))

    def ensure_queue(self, name: str, rank: int | None) -> None:
        """Create a work queue with this rank (the last one if None) unless one of this name exists."""
        if name in self.read().ranks:
            return
        try:
            call(lambda: self._client.create_work_queue(name, priority=rank, work_pool_name=self._name))
        except StackError as error:
            if not isinstance(error.__cause__, ObjectAlreadyExists):
                raise
        with self._lock:
            self._known = None
