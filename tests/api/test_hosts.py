"""Until a key is in use, a page of the web must not reach the API under a name of its own."""

import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from jobs.clients.keys import keys_marker, remember_keys
from jobs.settings import Settings

EVIL = {"Host": "evil.example:23478"}
PATHS = ("/", "/health", "/ready", "/docs", "/openapi.json", "/train", "/queue", "/metrics", "/nowhere")


@pytest.fixture
def settings(tmp_path):
    """Of no stack: what is refused is refused before one is looked for."""
    return Settings(home=tmp_path / "home", allowed_hosts=("gpu-box.lan",), host="api.lan")


@pytest.mark.parametrize("path", PATHS)
def test_a_strange_name_is_refused_everywhere(settings, path):
    answer = TestClient(create_app(settings)).get(path, headers=EVIL)
    assert (answer.status_code, answer.json()["code"]) == (421, "unknown_host")
    assert "'evil.example:23478'" in answer.json()["detail"]
    assert "TUNEYARD_ALLOWED_HOSTS" in answer.json()["detail"]
    assert not settings.home.exists()


@pytest.mark.parametrize("host", ["localhost:23478", "127.0.0.1", "[::1]:23478", "gpu-box.lan", "api.lan:23478"])
def test_own_names_are_answered(settings, host):
    assert TestClient(create_app(settings)).get("/health", headers={"Host": host}).status_code == 200


def test_once_keys_are_in_use_they_protect(settings):
    required = settings.model_copy(update={"require_api_key": True})
    client = TestClient(create_app(required))
    assert [client.get(path, headers=EVIL).status_code for path in ("/health", "/train")] == [200, 401]
    remember_keys(keys_marker(settings.home))
    assert TestClient(create_app(settings)).get("/health", headers=EVIL).status_code == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS"])
def test_a_page_of_the_web_is_refused_everywhere(settings, path, method):
    """A form, or a request that needs no leave, had made deliveries be sent again, say."""
    answer = TestClient(create_app(settings)).request(method, path, headers={"Origin": "http://evil.example"})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "TUNEYARD_CORS_ORIGINS" in answer.json()["detail"]
    assert not settings.home.exists()


def test_own_pages_and_those_that_were_set_are_answered(settings):
    client = TestClient(create_app(settings.model_copy(update={"cors_origins": ("https://lab.example",)})))
    for origin in ("http://localhost:23478", "http://127.0.0.1", "http://gpu-box.lan", "https://lab.example"):
        assert client.get("/health", headers={"Origin": origin}).status_code == 200


def test_once_keys_are_in_use_pages_may_ask(settings):
    client = TestClient(create_app(settings.model_copy(update={"require_api_key": True})))
    assert client.get("/health", headers={"Origin": "http://evil.example"}).status_code == 200
