"""Asking models by either client: what is sent, and what becomes of the responses."""

import json

import pytest

from tests.client.scripted_service import Scripted
from tuneyard_client.errors import InvalidRequest, NotFound, ServiceError
from tuneyard_wire.completions import ChatCompletion, Completion
from tuneyard_wire.openai import OpenAIModels

MESSAGES = [{"role": "user", "content": "Hello"}]
HEAD = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "mine@2"}


def make_stream(*contents: str) -> str:
    chunks = [{**HEAD, "choices": [{"index": 0, "delta": {"content": text}}]} for text in contents]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"


def test_a_chat_sends_its_options_and_how_long_it_waits(service, call):
    server = service(Scripted(body=json.dumps(ChatCompletion.example())))
    answer = call(server.url, "chat", "mine", MESSAGES, temperature=0, max_tokens=5, seed=None, wait_seconds=60)
    assert answer == ChatCompletion.model_validate(ChatCompletion.example())
    (request,) = server.received
    assert (request.method, request.path) == ("POST", "/v1/chat/completions")
    assert json.loads(request.body) == {"model": "mine", "messages": MESSAGES, "temperature": 0, "max_tokens": 5}
    assert request.headers["prefer"] == "wait=60"


def test_a_stream_yields_its_chunks(service, call):
    server = service(Scripted(body=make_stream("Good ", "day")))
    chunks = call(server.url, "stream_chat", "mine", MESSAGES)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "Good day"
    assert json.loads(server.received[0].body)["stream"] is True


def test_an_error_within_a_stream_is_raised(service, call):
    broken = {"error": {"message": "a job needs the memory", "type": "server_error", "code": "generation_busy"}}
    server = service(Scripted(body=make_stream("Good ").replace("[DONE]", json.dumps(broken))))
    with pytest.raises(ServiceError, match="needs the memory") as caught:
        call(server.url, "stream_chat", "mine", MESSAGES)
    assert caught.value.code == "generation_busy"


@pytest.mark.parametrize(("status", "kind"), [(400, InvalidRequest), (404, NotFound)])
def test_errors_of_openais_shape_are_read(service, call, status, kind):
    body = {"error": {"message": "no such model", "type": "invalid_request_error", "param": None, "code": "a_code"}}
    server = service(Scripted(status, json.dumps(body), {"X-Request-ID": "r7"}))
    with pytest.raises(kind, match="no such model") as caught:
        call(server.url, "model", "org/base")
    assert (caught.value.code, caught.value.request_id, caught.value.status) == ("a_code", "r7", status)


def test_models_and_completions_are_read(service, call):
    listed, text = OpenAIModels.example(), Completion.example()
    server = service(*(Scripted(body=json.dumps(body)) for body in (listed, listed["data"][0], text)))
    assert [one.id for one in call(server.url, "models")] == ["handbook@3"]
    assert call(server.url, "model", "org/base@1").parent == listed["data"][0]["parent"]
    assert call(server.url, "complete", "m", "The office", max_tokens=2).choices[0].text == " opens at eight."
    assert [request.path for request in server.received] == [
        "/v1/models", "/v1/models/org/base%401", "/v1/completions",
    ]  # fmt: skip
