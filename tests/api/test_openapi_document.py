"""The OpenAPI document is made once, whoever asks for it how often."""

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


def test_the_document_says_what_a_proxy_puts_in_front():
    app = create_app(Settings())
    client = TestClient(app, base_url="http://localhost", root_path="/tuneyard")
    assert client.get("/openapi.json").json()["servers"] == [{"url": "/tuneyard"}]
