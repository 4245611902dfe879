"""Build the FastAPI app, which serves both documented interfaces over the same jobs."""

import functools
import importlib.metadata
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import Depends, FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware

from api import base_model_routes, data_routes, health, job_routes, plan_routes, sft_routes, train_routes, upload_routes
from api.auth import Authentication, read_keys, warn_if_open_to_others
from api.channels import EventHub
from api.docs import install_openapi
from api.errors import install_error_handlers
from api.head import HeadAsGet
from api.limits import BodyLimit, RateLimit, RefusalLimit, RequestCounter, parse_rate_limit
from api.lingering import Lingering
from api.log_channels import LogHub
from api.metrics import ServiceMetrics, Snapshot
from api.openai import answer_routes, file_routes, model_routes
from api.openai import upload_routes as openai_upload_routes
from api.openai.answering import limit_generations
from api.parameters import check_parameters
from api.requests import REQUEST_ID_HEADER, RequestRecorder, log_to_stderr_unless_configured
from api.stream_keys import OpenStreams
from api.stream_limit import limit_streams
from api.streaming import encode_row
from api.values import check_values
from jobs.clients.keys import ApiKeyCache, keys_marker
from jobs.errors import PlanningFailed
from jobs.network.connection_guard import ConnectionGuard
from jobs.network.connection_limits import ConnectionLimits, limits_for, raise_descriptor_limit
from jobs.privacy import keep_private
from jobs.sanitizing.log_lines import keep_lines_whole
from jobs.service.access import StackAccess
from jobs.service.generator import Generator
from jobs.service.planner import Planner
from jobs.settings import Settings
from jobs.stack.readiness import check_parts, count_jobs
from sft.errors import StackError

logger = logging.getLogger(__name__)

READINESS_TTL_SECONDS = 1.0
REQUEST_THREADS = 200  # anyio's 40 would soon all wait for a server that does not respond
JOB_COUNTS_TTL_SECONDS = 10.0
RESPONSE_SECONDS = 5.0  # to send 408 for a late body, before the connection is closed
EXPOSED_HEADERS = (
    "Retry-After",
    "Link",
    "X-Next-Cursor",
    "X-Checksum-SHA256",
    "Content-Disposition",
    "ETag",
    "Content-Range",
)


def create_guarded_app(settings: Settings | None = None) -> ConnectionGuard:
    """Build the app with limits on the server's connections, which a FastAPI middleware can't see."""
    settings = settings or Settings()
    return ConnectionGuard(create_app(settings), find_limits(settings))


def find_limits(settings: Settings) -> ConnectionLimits:
    """Limits on the number and the slowness of this process's connections."""
    body_seconds = settings.body_timeout_seconds + RESPONSE_SECONDS
    return limits_for(raise_descriptor_limit(), settings.max_connections, body_seconds)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the app. It starts the local stack in the background; requests that need the stack wait for it."""
    settings = settings or Settings()
    app = FastAPIOffline(
        title="Tuneyard",
        version=importlib.metadata.version("tuneyard"),
        description="Self-hosted LoRA fine-tuning: post a job, get a registered adapter.",
        lifespan=_warm_up,
        dependencies=[Depends(check_values), Depends(check_parameters)],
        static_url="/docs/assets",
        redoc_url=None,  # ReDoc's page loads a logo from the internet
        swagger_ui_oauth2_redirect_url="/docs/oauth2-redirect",
        swagger_ui_parameters={"validatorUrl": None},  # which would send the schema to a public validator
    )
    app.state.settings = settings
    app.state.access = StackAccess(settings)
    app.state.planner = Planner()
    data_routes.install(app.state, settings.max_uploads)
    app.state.plan_limit = plan_routes.limit_plans(settings.max_plans)
    app.state.generator = Generator(settings)
    app.state.generation_limit = limit_generations(settings.max_generations)
    app.state.keys = ApiKeyCache(functools.partial(read_keys, settings), keys_marker(settings.home))
    app.state.streams = EventHub(encode_row)
    app.state.logs = LogHub()
    connections = find_limits(settings).connections
    app.state.open_streams = OpenStreams(lambda: app.state.keys.refresh(None))
    app.state.stream_limit = limit_streams(min(settings.max_streams, connections // 2), connections // 2)
    app.state.readiness = Snapshot(lambda: check_parts(settings), READINESS_TTL_SECONDS)
    app.state.metrics = ServiceMetrics(
        Snapshot(lambda: count_jobs(settings), JOB_COUNTS_TTL_SECONDS), app.state.readiness
    )
    install_error_handlers(app)
    # Routes are matched in order, so the ones that are polled come first.
    of_jobs = (health, plan_routes, train_routes, sft_routes, job_routes)
    of_openai = (model_routes, answer_routes, file_routes, openai_upload_routes)
    routes = (*of_jobs, upload_routes, data_routes, base_model_routes, *of_openai)
    for router in (module.router for module in routes):
        app.include_router(router)
    install_openapi(app)
    _add_middleware(app, settings)
    return app


def _add_middleware(app: FastAPI, settings: Settings) -> None:
    """Add middleware from the innermost to the outermost."""
    app.add_middleware(HeadAsGet)
    app.add_middleware(
        BodyLimit,
        max_bytes=settings.max_body_bytes,
        timeout_seconds=settings.body_timeout_seconds,
        max_upload_bytes=settings.max_upload_bytes,
    )
    counter = RequestCounter(parse_rate_limit(settings.rate_limit)) if settings.rate_limit else None
    if counter:
        app.add_middleware(RateLimit, counter=counter)
    app.add_middleware(
        Authentication,
        keys=app.state.keys,
        access=app.state.access,
        is_key_required=settings.require_api_key,
        allowed_hosts=(settings.host, *settings.allowed_hosts),
        allowed_origins=settings.cors_origins,
    )
    if counter:
        app.add_middleware(RefusalLimit, counter=counter)
    app.add_middleware(RequestRecorder, metrics=app.state.metrics)
    app.add_middleware(Lingering)
    if settings.cors_origins:  # outermost, so that pages can read errors too
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["*"],
            expose_headers=[REQUEST_ID_HEADER, *EXPOSED_HEADERS],
        )


@asynccontextmanager
async def _warm_up(app: FastAPI) -> AsyncIterator[None]:
    to_thread.current_default_thread_limiter().total_tokens = REQUEST_THREADS
    keep_private()
    keep_lines_whole()
    log_to_stderr_unless_configured()
    threading.Thread(target=_open, args=(app,), name="open-stack", daemon=True).start()
    try:
        yield
    finally:
        app.state.planner.close()
        app.state.generator.close()


def _open(app: FastAPI) -> None:
    try:
        app.state.access.open()
        warn_if_open_to_others(app.state.keys.refresh(None), app.state.settings)
    except StackError as error:
        logger.error("The local stack did not start: %s", error)  # the next request tries again, or responds 503
        return
    try:
        if app.state.settings.keep_planner:
            app.state.planner.start()
    except PlanningFailed as error:
        logger.error("The planner did not start: %s", error)  # the next plan tries again
