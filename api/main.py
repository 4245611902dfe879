"""Makes the FastAPI app that serves both documented interfaces over one kind of job."""

import importlib.metadata
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from api import sft_routes, train_routes
from api.errors import install_error_handlers
from jobs.door import Door
from jobs.settings import Settings
from sft.errors import StackError

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> FastAPI:
    """The app. The local stack starts beside it, in the background; a request that needs it waits."""
    app = FastAPI(
        title="Tuneyard",
        version=importlib.metadata.version("tuneyard"),
        description="Self-hosted LoRA fine-tuning: post a job, get a registered adapter.",
        lifespan=_warm_up,
    )
    app.state.door = Door(settings)
    install_error_handlers(app)
    app.include_router(train_routes.router)
    app.include_router(sft_routes.router)
    return app


@asynccontextmanager
async def _warm_up(app: FastAPI) -> AsyncIterator[None]:
    threading.Thread(target=_open, args=(app.state.door,), name="open-stack", daemon=True).start()
    yield


def _open(door: Door) -> None:
    try:
        door.open()
    except StackError as error:
        logger.error("The local stack did not start: %s", error)  # the next request tries again and answers 503
