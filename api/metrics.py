"""Metrics for Prometheus.

Each process has its own, unless `PROMETHEUS_MULTIPROC_DIR` names an empty folder that the processes share:
prometheus-client keeps the metrics there, and each process reports the sum.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

import httpx
from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import Scope

from jobs.stack.readiness import PartCheck
from sft.errors import StackError

T = TypeVar("T")

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Snapshot(Generic[T]):
    """Cache a value for `ttl_seconds`. One thread at a time reads it."""

    def __init__(self, read: Callable[[], T], ttl_seconds: float) -> None:
        self._read = read
        self._ttl_seconds = ttl_seconds
        self._value: tuple[float, T] | None = None
        self._lock = threading.Lock()

    def get(self) -> T:
        """Return the cached value, or read it. Raises what `read` raises."""
        with self._lock:
            if self._value is None or time.monotonic() - self._value[0] > self._ttl_seconds:
                value = self._read()
                self._value = (time.monotonic(), value)
            return self._value[1]


class ServiceMetrics:
    """Request metrics, counted here, and metrics of the stack, read at each scrape."""

    def __init__(self, jobs: Snapshot[dict[str, int]], readiness: Snapshot[dict[str, PartCheck]]) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter("tuneyard_http_requests", "Requests served.", labels, registry=self.registry)
        self._seconds = Histogram(
            "tuneyard_http_response_start_seconds",
            "Seconds from a request to the start of its response.",
            labels[:2],
            buckets=LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._stack = _StackCollector(jobs, readiness)
        self.registry.register(self._stack)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)

    def count_request(self, scope: Scope, status: int, seconds: float) -> None:
        """Count one request by its route's template, since ids in paths would create new series."""
        method = scope["method"] if scope["method"] in METHODS else "OTHER"
        route = route_template(scope)
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def render(self) -> bytes:
        """Render all metrics in Prometheus' text format; with a shared folder without metrics of a single process."""
        if not os.environ.get(SHARED_FOLDER):
            return generate_latest(self.registry)
        shared = CollectorRegistry()
        MultiProcessCollector(shared)  # type: ignore[no-untyped-call]
        shared.register(self._stack)
        return generate_latest(shared)


def route_template(scope: Scope) -> str:
    """The route's path, such as `/train/{job_id}`; `(none)` if no route matched."""
    path = getattr(scope.get("route"), "path", None)
    return str(path) if path else "(none)"


class _StackCollector(Collector):
    """Jobs by status and the parts' readiness, read at each scrape. What can't be read is omitted."""

    def __init__(self, jobs: Snapshot[dict[str, int]], readiness: Snapshot[dict[str, PartCheck]]) -> None:
        self._jobs = jobs
        self._readiness = readiness

    def describe(self) -> list[GaugeMetricFamily]:
        """Return nothing, else the registry would call `collect` when this is registered."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Read the values."""
        try:
            readiness = self._readiness.get()
        except StackError:
            readiness = {}
        parts = {name: float(check.ok) for name, check in readiness.items()}
        yield _gauge("tuneyard_part_ready", "Whether a part that jobs need responds.", "part", parts)
        try:
            jobs = self._jobs.get() if readiness and readiness["prefect"].ok else {}
        except httpx.HTTPError:
            jobs = {}
        yield _gauge("tuneyard_jobs", "Jobs by status.", "status", jobs)


def _gauge(name: str, text: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
