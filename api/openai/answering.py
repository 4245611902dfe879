"""Answers from the generation process, as one response or as a stream."""

import re
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import anyio
from anyio import to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from api.dependencies import find_visible_owner
from api.limits import ClientLimit, client_name
from api.openai.answer_request import ChatRequest, CompletionRequest
from jobs.errors import ContextTooLong
from jobs.results.checkpoint_models import find_model
from jobs.service.generator import Generator
from jobs.service.job_service import JobService
from jobs.service.served_models import ServedModel
from sft.errors import InvalidConfig

CLIENTS = 4  # that may each have the maximum of requests at once
DISCONNECT_POLL_SECONDS = 0.25
DEFAULT_TOKENS = 512
MOST_WAIT_SECONDS = 600
WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,6})\"?(?:$|[,;\s])")


def limit_generations(per_client: int) -> ClientLimit:
    """Limit the requests for answers that run or wait."""
    too_many = (
        f"At most {per_client} requests for answers may run or wait at once per API key, or per address without keys "
        "(TUNEYARD_MAX_GENERATIONS); wait for one of yours"
    )
    total = CLIENTS * per_client
    return ClientLimit(per_client, total, too_many, f"The service has {total} requests for answers, its maximum")


class PendingAnswer:
    """One request: its model, its name and its pieces."""

    def __init__(self, request: Request, service: JobService, body: ChatRequest | CompletionRequest) -> None:
        self._request = request
        self._service = service
        self._body = body
        self.created = int(time.time())
        self.model: ServedModel | None = None
        prefix = "chatcmpl" if isinstance(body, ChatRequest) else "cmpl"
        self.id = f"{prefix}-{uuid4().hex}"

    @property
    def state(self) -> Any:
        """The app's state."""
        return self._request.app.state

    @property
    def head(self) -> dict[str, Any]:
        """The fields that are the same in each response."""
        return {"id": self.id, "created": self.created, "model": self.model.id if self.model else self._body.model}

    async def find_model(self) -> None:
        """Find the model. Raises ModelNotFound, or InvalidConfig for an adapter whose base model is not known."""
        owner = find_visible_owner(self._request)
        model = await to_thread.run_sync(find_model, self._service, self._body.model, owner)
        if model.base is None:
            raise InvalidConfig(f"model {model.id}: the registry does not name its base model (the tag base_model)")
        self.model = model

    async def pieces(self) -> AsyncGenerator[dict[str, Any]]:
        """Yield the pieces, then the usage. Raises HTTPException if the client has too many requests."""
        assert self.model is not None  # noqa: S101 - found before
        generator: Generator = self.state.generator
        model = {name: getattr(self.model, name) for name in ("base", "adapter", "checkpoint", "created")}
        work = {**self._body.to_work(), "model": self.model.id, **model, "default_max_tokens": DEFAULT_TOKENS}
        wait_seconds = read_wait(self._request.headers.get("Prefer", ""))
        with self.state.generation_limit.held(client_name(self._request.scope)):
            async with aclosing(generator.generate(work, self._service.settings, wait_seconds)) as pieces:
                try:
                    async for piece in pieces:
                        yield piece
                except ContextTooLong as error:
                    error.param = "messages" if isinstance(self._body, ChatRequest) else "prompt"
                    raise

    async def collect(self) -> list[dict[str, Any]]:
        """All pieces. A client that hangs up cancels them; ClientDisconnect is raised then."""
        found: list[dict[str, Any]] = []
        problem: Exception | None = None
        is_complete = False

        async def watch(scope: anyio.CancelScope) -> None:
            while not await self._request.is_disconnected():
                await anyio.sleep(DISCONNECT_POLL_SECONDS)
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch, tasks.cancel_scope)
            try:
                async for piece in self.pieces():
                    found.append(piece)
                is_complete = True
            except Exception as error:  # a task group would wrap it
                problem = error
            tasks.cancel_scope.cancel()
        if problem is not None:
            raise problem
        if not is_complete:
            raise ClientDisconnect
        return found


def read_wait(prefer: str) -> float:
    """Seconds of `Prefer: wait=N` (RFC 7240): how long to wait while jobs leave no room."""
    match = WAIT.search(prefer)
    return min(float(match[1]), MOST_WAIT_SECONDS) if match else 0.0
