"""`/health`: whether this process runs. `/ready`: whether a job could run now. `/metrics`: metrics for Prometheus.

None of them starts the stack or waits for it.
"""

from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from api.metrics import ServiceMetrics, Snapshot
from tuneyard_wire.service import Health, PartReadiness, Readiness

router = APIRouter(tags=["Service"])


@router.get("/health")
async def get_health(request: Request) -> Health:
    """Whether this process runs."""
    return Health(version=request.app.version)


@router.get("/ready", responses={503: {"model": Readiness, "description": "A part does not respond"}})
async def get_readiness(request: Request) -> Readiness:
    """Whether the database, Prefect, MLflow, a worker and the watchdog respond; 503 while one does not."""
    snapshot: Snapshot[dict[str, Any]] = request.app.state.readiness
    checks = await _read_in_own_thread(snapshot)
    parts = {name: PartReadiness(ok=check.ok, detail=check.detail) for name, check in checks.items()}
    readiness = Readiness(ready=all(part.ok for part in parts.values()), parts=parts)
    return readiness if readiness.ready else JSONResponse(readiness.model_dump(), 503)  # type: ignore[return-value]


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def get_metrics(request: Request) -> Response:
    """Metrics in Prometheus' text format: requests, jobs by status, readiness of the parts, this process."""
    metrics: ServiceMetrics = request.app.state.metrics
    text = await to_thread.run_sync(metrics.render, limiter=CapacityLimiter(1))
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def _read_in_own_thread(snapshot: Snapshot[Any]) -> Any:
    """Read in a thread outside the pool, whose threads may all wait for the stack to start."""
    return await to_thread.run_sync(snapshot.get, limiter=CapacityLimiter(1))
