"""The OpenAPI document is made once, whoever asks for it how often."""

import asyncio

import httpx
from fastapi.testclient import TestClient

from api.main import create_app
from jobs.settings import Settings


def test_the_document_is_rendered_once():
    """It takes tens of milliseconds in which no other request is answered, and no key is asked for it."""
    app = create_app(Settings())
    client = TestClient(app, base_url="http://localhost")
    first = client.get("/openapi.json")
    assert (first.status_code, first.headers["content-type"]) == (200, "application/json")
    assert first.json() == app.openapi()

    def refuse():
        raise AssertionError("made again")

    app.openapi = refuse
    assert client.get("/openapi.json").content == first.content
    assert client.head("/openapi.json").headers["content-length"] == str(len(first.content))


def test_the_document_is_rendered_once_for_all_who_ask_at_the_same_time():
    app = create_app(Settings())
    make, made = app.openapi, []

    def openapi():
        made.append(1)
        return make()

    app.openapi = openapi

    async def ask_often():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(*(client.get("/openapi.json") for _ in range(20)))

    assert {answer.status_code for answer in asyncio.run(ask_often())} == {200}
    assert len(made) == 1


def test_the_document_says_what_a_proxy_puts_in_front():
    app = create_app(Settings())
    client = TestClient(app, base_url="http://localhost", root_path="/tuneyard")
    assert client.get("/openapi.json").json()["servers"] == [{"url": "/tuneyard"}]
