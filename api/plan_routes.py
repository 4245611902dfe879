"""`POST /train/plan` and `POST /api/sft/plan`: what a job would take, before it is started."""

import threading
from typing import Any

import anyio
from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request

from api.dependencies import Service
from api.errors import SFT_PREFIX
from api.limits import ClientLimit, client_name
from api.responses import respond
from api.sft_request import TrainBody
from api.training_request import TrainingRequest
from jobs.preflight.surroundings import Surroundings, find_surroundings
from jobs.service.job_service import JobService
from jobs.service.planner import PlanCancelled, Planner
from sft.config import SFTConfig
from sft.errors import DatasetNotFound, ModelNotFound, TuneyardError
from tuneyard_wire.plan import Plan

router = APIRouter()

CLIENTS = 4  # that may have as many plans as each may; so many threads are kept for them
LOOK_SECONDS = 0.25  # how soon a client that hung up is noticed


@router.post("/train/plan", tags=["Training API"])
async def plan_training(body: TrainingRequest, request: Request, service: Service) -> Plan:
    """Plan a training job: tokenize its rows for real and say what it would take. No job is made."""
    return await _plan(request, service, body.to_spec(service.settings.default_dataset).config)


@router.post(f"{SFT_PREFIX}/plan", tags=["SFT API"])
async def plan_sft(body: TrainBody, request: Request, service: Service) -> Plan:
    """Plan a job: tokenize its rows for real and say what it would take. No job is made."""
    saved = None
    if body.config_id is not None:
        saved = await to_thread.run_sync(service.configs.get, body.config_id)
    return await _plan(request, service, body.to_spec(saved).config)


def limit_plans(per_client: int) -> ClientLimit:
    """How many may be made or wait for their turn."""
    too_many = (
        f"At most {per_client} plans may be made or wait at once for one API key, or for one address without keys "
        "(TUNEYARD_MAX_PLANS); wait for one of yours"
    )
    total = CLIENTS * per_client
    return ClientLimit(per_client, total, too_many, f"The service has {total} plans to make and takes no more")


async def _plan(request: Request, service: JobService, config: SFTConfig) -> Plan:
    """The plan; given up when the client hangs up. Raises HTTPException where the client has too many."""
    client = client_name(request.scope)
    with request.app.state.plan_limit.held(client):
        return await _wait_for_plan(request, service, config, client)


async def _wait_for_plan(request: Request, service: JobService, config: SFTConfig, client: str) -> Plan:
    planner: Planner = request.app.state.planner
    gone = threading.Event()
    plan: Any = None
    problem: Exception | None = None

    async def watch() -> None:
        while not await request.is_disconnected():
            await anyio.sleep(LOOK_SECONDS)
        gone.set()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            try:
                plan = await to_thread.run_sync(
                    planner.plan,
                    config,
                    service.settings,
                    gone.is_set,
                    client,
                    limiter=_threads(request),
                    abandon_on_cancel=True,
                )
            except (PlanCancelled, TuneyardError) as error:  # a task group would wrap it
                problem = error
            tasks.cancel_scope.cancel()
    finally:
        gone.set()
    if isinstance(problem, TuneyardError):
        raise _explain_place(problem, find_surroundings(service.settings))
    return respond(Plan, plan)


def _threads(request: Request) -> CapacityLimiter:
    """Threads of their own: plans that wait for their turn must not hold those of the other routes."""
    state = request.app.state
    if not hasattr(state, "planner_threads"):
        state.planner_threads = CapacityLimiter(state.plan_limit.total)
    limiter: CapacityLimiter = state.planner_threads
    return limiter


def _explain_place(error: TuneyardError, around: Surroundings) -> TuneyardError:
    """With workers elsewhere this machine may well lack what they have."""
    is_elsewhere = around.hint and isinstance(error, ModelNotFound | DatasetNotFound)
    return type(error)(f"{error}{around.hint}") if is_elsewhere else error
