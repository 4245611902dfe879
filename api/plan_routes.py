"""`POST /train/plan` and `POST /api/sft/plan`: estimate a job before it is started."""

from collections.abc import Callable
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request

from api.dependencies import Service, find_visible_owner
from api.errors import SFT_PREFIX
from api.limits import ClientLimit, client_name
from api.responses import respond
from api.sft_request import TrainBody
from api.training_request import TrainingRequest
from api.waiting import run_for_client
from jobs.preflight.context import CheckContext, find_context
from jobs.service.files import settle_config
from jobs.service.job_service import JobService
from jobs.service.planner import PlanCancelled, Planner
from sft.config import SFTConfig
from sft.errors import DatasetNotFound, ModelNotFound, TuneyardError
from sft.planning.devices import find_card
from tuneyard_wire.plan import Plan

router = APIRouter()

CLIENTS = 4  # that may each have the maximum of plans at once
PlanDevice = Annotated[
    str | None,
    Query(
        max_length=60,
        description="A device to plan for, which need not be there: `h100-80gb`, `a100-40gb`, `rtx4090`, `t4`, ... or "
        "one of TUNEYARD_PLAN_DEVICES. Left out, it is that of the machine of the service.",
        examples=["h100-80gb"],
    ),
]


@router.post("/train/plan", tags=["Training API"])
async def plan_training(body: TrainingRequest, request: Request, service: Service, device: PlanDevice = None) -> Plan:
    """Estimate a training job without creating it. Tokenizes its rows; the job reuses them."""
    return await _plan(request, service, body.to_spec(service.settings.default_dataset).config, device)


@router.post(f"{SFT_PREFIX}/plan", tags=["SFT API"])
async def plan_sft(body: TrainBody, request: Request, service: Service, device: PlanDevice = None) -> Plan:
    """Estimate a job without creating it. Tokenizes its rows; the job reuses them."""
    saved = None
    if body.config_id is not None:
        saved = await to_thread.run_sync(service.configs.get, body.config_id)
    return await _plan(request, service, body.to_spec(saved).config, device)


def limit_plans(per_client: int) -> ClientLimit:
    """Limit the plans that run or wait."""
    too_many = (
        f"At most {per_client} plans may run or wait at once per API key, or per address without keys "
        "(TUNEYARD_MAX_PLANS); wait for one of yours"
    )
    total = CLIENTS * per_client
    return ClientLimit(per_client, total, too_many, f"The service has {total} plans pending, its maximum")


async def _plan(request: Request, service: JobService, config: SFTConfig, device: str | None) -> Plan:
    """Make a plan; cancel it if the client disconnects. Raises HTTPException if the client has too many."""
    config = await to_thread.run_sync(settle_config, config, service.settings, find_visible_owner(request))
    if device is not None:
        find_card(device, service.settings.plan_devices)
    client = client_name(request.scope)
    with request.app.state.plan_limit.held(client):
        return await _wait_for_plan(request, service, config, client, device)


async def _wait_for_plan(
    request: Request, service: JobService, config: SFTConfig, client: str, device: str | None
) -> Plan:
    planner: Planner = request.app.state.planner

    def make(is_gone: Callable[[], bool]) -> dict[str, Any]:
        return planner.plan(config, service.settings, is_gone, client, device)

    try:
        plan = await run_for_client(request, make, _threads(request), PlanCancelled)
    except TuneyardError as error:
        raise _add_hint(error, find_context(service.settings)) from error
    return respond(Plan, plan)


def _threads(request: Request) -> CapacityLimiter:
    """Threads for plans alone, so that waiting plans do not take those of the other routes."""
    state = request.app.state
    if not hasattr(state, "planner_threads"):
        state.planner_threads = CapacityLimiter(state.plan_limit.total)
    limiter: CapacityLimiter = state.planner_threads
    return limiter


def _add_hint(error: TuneyardError, context: CheckContext) -> TuneyardError:
    """If workers run on other machines, add to a not-found error that the file may be there."""
    is_elsewhere = context.hint and isinstance(error, ModelNotFound | DatasetNotFound)
    return type(error)(f"{error}{context.hint}") if is_elsewhere else error
