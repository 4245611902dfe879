"""Until a key is in use, a page of the web must not reach the API under a name of its own."""

import pytest
from fastapi.testclient import TestClient

from api.main import create_app
from jobs.keys import keys_marker, remember_keys
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
