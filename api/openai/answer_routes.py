"""`POST /v1/chat/completions` and `POST /v1/completions`: ask a base model or an adapter."""

import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

from api.dependencies import Service
from api.openai.answer_request import ChatRequest, CompletionRequest
from api.openai.answering import PendingAnswer
from api.openai.answers import (
    ChatDeltas,
    Piece,
    join_pieces,
    write_chat_choice,
    write_completion_choice,
    write_usage,
)
from api.openai.errors import write_error
from api.responses import respond
from api.stream_limit import LimitedStream
from api.streaming import STREAM_HEADERS
from jobs.errors import GenerationFailed
from sft.errors import TuneyardError
from tuneyard_wire.completions import ChatCompletion, Completion

logger = logging.getLogger(__name__)

router = APIRouter(tags=["OpenAI API"])

DONE = b"data: [DONE]\n\n"
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}
Write = Callable[[Piece], dict[str, Any]]


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=STREAM)
async def answer_chat(body: ChatRequest, request: Request, service: Service) -> Any:
    """Answer a chat. `Prefer: wait=SECONDS` waits while jobs leave no room, instead of a 503."""
    answering = PendingAnswer(request, service, body)
    await answering.find_model()
    has_logprobs = bool(body.logprobs)
    if body.stream:
        return await _stream(answering, body, "chat.completion.chunk", ChatDeltas(has_logprobs).write)
    answers, usage = join_pieces(await answering.collect())
    choices = [write_chat_choice(answer, has_logprobs) for answer in answers]
    whole = {**answering.head, "object": "chat.completion", "choices": choices, "usage": usage}
    return respond(ChatCompletion, whole)


@router.post("/v1/completions", response_model=Completion, responses=STREAM)
async def complete_text(body: CompletionRequest, request: Request, service: Service) -> Any:
    """Continue a text, or several. `Prefer: wait=SECONDS` waits while jobs leave no room, instead of a 503."""
    answering = PendingAnswer(request, service, body)
    await answering.find_model()
    has_logprobs = body.logprobs is not None

    def write(piece: Piece) -> dict[str, Any]:
        return write_completion_choice(piece, has_logprobs)

    if body.stream:
        return await _stream(answering, body, "text_completion", write)
    answers, usage = join_pieces(await answering.collect())
    choices = [write(answer) for answer in answers]
    return respond(Completion, {**answering.head, "object": "text_completion", "choices": choices, "usage": usage})


async def _stream(answering: PendingAnswer, body: ChatRequest | CompletionRequest, kind: str, write: Write) -> Response:
    """Start a stream once the first piece is there, so that an error before it has a status of its own."""
    pieces = answering.pieces()
    try:
        first = await anext(pieces)
    except BaseException:
        await pieces.aclose()
        raise
    wants_usage = body.stream_options is not None and body.stream_options.include_usage
    state = answering.state
    events = _write_events(answering, pieces, first, kind, write, wants_usage)
    return LimitedStream(
        state.stream_limit, state.open_streams, events, media_type="text/event-stream", headers=STREAM_HEADERS
    )


async def _write_events(
    answering: PendingAnswer,
    pieces: AsyncGenerator[Piece],
    piece: Piece | None,
    kind: str,
    write: Write,
    wants_usage: bool,
) -> AsyncIterator[bytes]:
    head = {**answering.head, "object": kind}
    usage: dict[str, Any] = {"usage": None} if wants_usage else {}
    try:
        while piece is not None:
            if "usage" not in piece:
                yield _event({**head, "choices": [write(piece)], **usage})
            elif wants_usage:
                yield _event({**head, "choices": [], "usage": write_usage(piece)})
            piece = await anext(pieces, None)
        yield DONE
    except (TuneyardError, HTTPException) as error:
        logger.info("A stream of an answer ended early: %s", error)
        code = error.code if isinstance(error, TuneyardError) else GenerationFailed.code
        yield _event(write_error(500, str(error), code))
    finally:
        await pieces.aclose()


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(content, allow_nan=False).encode() + b"\n\n"
