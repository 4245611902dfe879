"""Requests for models and their answers, as `tuneyard_client.calls` has those for jobs."""

import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, TypeVar

import httpx

from tuneyard_client.calls import Call, get, segment
from tuneyard_client.errors import error_for
from tuneyard_client.models import AnswerOptions, ChatOptions, Messages
from tuneyard_client.reading import read_model, read_models, validate
from tuneyard_wire.completions import ChatChunk, ChatCompletion, Completion
from tuneyard_wire.openai import OpenAIModel

T = TypeVar("T")


def models() -> Call[list[OpenAIModel]]:
    """GET /v1/models."""
    return get("/v1/models", read_models(OpenAIModel, "data"))


def model(model_id: str) -> Call[OpenAIModel]:
    """GET /v1/models/{id}, whose id may hold slashes."""
    return get("/v1/models/" + "/".join(map(segment, model_id.split("/"))), read_model(OpenAIModel))


def chat(model_id: str, messages: Messages, options: ChatOptions) -> Call[ChatCompletion]:
    """POST /v1/chat/completions. The service limits its time itself; that is longer than the read timeout."""
    body = {"model": model_id, "messages": [dict(message) for message in messages]}
    return _answer("/v1/chat/completions", read_model(ChatCompletion), body, options)


def chat_request(model_id: str, messages: Messages, options: ChatOptions) -> Call[Any]:
    """POST /v1/chat/completions, streamed."""
    body = {"model": model_id, "messages": [dict(message) for message in messages], "stream": True}
    return _answer("/v1/chat/completions", lambda response: response, body, options)


def complete(model_id: str, prompt: str, options: AnswerOptions) -> Call[Completion]:
    """POST /v1/completions."""
    return _answer("/v1/completions", read_model(Completion), {"model": model_id, "prompt": prompt}, options)


def read_chat_line(line: str) -> ChatChunk | None:
    """Parse a line of a streamed chat; None for one without a chunk. Raises the error that it reports."""
    content = line.removeprefix("data:").strip()
    if not line.startswith("data:") or content == "[DONE]":
        return None
    found = validate(_read_object, lambda: json.loads(content))
    if "error" in found:
        raise error_for(HTTPStatus.SERVICE_UNAVAILABLE, found, None)
    return validate(ChatChunk.model_validate, lambda: found)


def _read_object(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def _answer(path: str, read: Callable[[httpx.Response], T], body: dict[str, Any], options: AnswerOptions) -> Call[T]:
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    wait_seconds = given.pop("wait_seconds", None)
    headers = {"Prefer": f"wait={wait_seconds}"} if wait_seconds else {}
    return Call("POST", path, read, body=body | given, headers=headers, is_repeatable=True, is_endless=True)
