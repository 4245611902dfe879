"""Under which names servers answer: a page of the web must not reach them under one of its own."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from jobs.network.hosts import KnownHosts, find_unknown_host, find_unknown_origin
from jobs.settings import Settings

OWN = [
    *("localhost", "LOCALHOST:4200", "localhost.", "127.0.0.1", "127.0.0.1:23478", "127.8.9.1", "[::1]", "[::1]:80"),
    *("app.localhost:1", "10.0.0.5:23478", "api", "api:23478", "API.", "gpu-box.lan:80"),
]
OTHERS = [
    *("evil.example", "evil.example:23478", "localhost.evil.example", "127.0.0.1.nip.io", "127.0.0.1.evil.example"),
    *("10.0.0.6", "10.0.0.5.evil.example", "api.evil.example", "evilapi", "evil@localhost", "localhost@evil.example"),
    *("localhost:80:80", "localhost/", "localhost#evil", "", " ", "[::2]", "[", "a b", "localhost,evil.example", "*"),
    *("localhost\x00", "xn--lcalhost-54a", "2130706433.evil", "localhost:port", "192.168.evil.example", "a" * 70_000),
]


def scope(*hosts, server=("10.0.0.5", 23478)):
    return {"type": "http", "headers": [(b"host", host.encode()) for host in hosts], "server": server}


@pytest.mark.parametrize("host", OWN)
def test_own_names_are_answered(host):
    assert find_unknown_host(scope(host), ("api", "GPU-BOX.lan")) is None


@pytest.mark.parametrize("host", OTHERS, ids=[ascii(host)[:30] for host in OTHERS])
def test_other_names_are_not_answered(host):
    assert find_unknown_host(scope(host), ("api", "gpu-box.lan")) == host


def test_of_several_names_each_counts():
    assert find_unknown_host(scope("localhost", "evil.example"), ()) == "evil.example"
    assert find_unknown_host(scope("evil.example", "localhost"), ()) == "evil.example"


def from_page(*origins):
    return {**scope("localhost"), "headers": [(b"origin", origin.encode()) for origin in origins]}


@pytest.mark.parametrize("host", OWN)
def test_own_pages_are_answered(host):
    for scheme in ("http", "https"):
        assert find_unknown_origin(from_page(f"{scheme}://{host}"), ("api", "gpu-box.lan")) is None


@pytest.mark.parametrize(
    "origin", ["null", "file://", "localhost", "chrome-extension://localhost", "http://", "http://http://localhost", ""]
)
def test_what_is_no_origin_is_one_of_others(origin):
    assert find_unknown_origin(from_page(origin), ()) == origin


@pytest.mark.parametrize("host", OTHERS, ids=[ascii(host)[:30] for host in OTHERS])
def test_other_pages_are_not_answered(host):
    assert find_unknown_origin(from_page(f"http://{host}"), ("api", "gpu-box.lan")) == f"http://{host}"
    assert find_unknown_origin(from_page("http://localhost", f"http://{host}"), ("api", "gpu-box.lan"))


def test_pages_may_be_allowed_and_who_is_no_browser_names_none():
    assert find_unknown_origin(from_page("https://lab.example"), (), ("https://lab.example",)) is None
    assert find_unknown_origin(from_page("https://lab.example:1"), (), ("https://lab.example",))
    assert find_unknown_origin(from_page("https://lab.example"), (), ("*",)) is None
    assert find_unknown_origin(from_page("https://lab.example"), ("*",)) is None
    assert find_unknown_origin(scope("localhost"), ()) is None


def test_all_names_may_be_allowed_and_none_need_be_given():
    assert find_unknown_host(scope("evil.example"), ("*",)) is None
    assert find_unknown_host(scope(), ()) is None  # no browser leaves it out
    assert find_unknown_host(scope("localhost", server=None), ()) is None
    assert find_unknown_host(scope("x", server=("/run/socket", None)), ()) == "x"


def test_the_setting_is_a_list(monkeypatch):
    monkeypatch.setenv("TUNEYARD_ALLOWED_HOSTS", "api, gpu-box.lan")
    settings = Settings()
    assert settings.allowed_hosts == ("api", "gpu-box.lan")
    assert settings.model_dump(mode="json")["allowed_hosts"] == "api,gpu-box.lan"  # as the stack's parts get it


async def echo(socket):
    await socket.accept()
    await socket.close()


def test_pages_and_web_sockets_are_refused_alike():
    routes = [Route("/", lambda _: PlainTextResponse("here")), WebSocketRoute("/events", echo)]
    client = TestClient(KnownHosts(Starlette(routes=routes), ("api",)), base_url="http://127.0.0.1:4200")
    assert client.get("/", headers={"Host": "api"}).text == "here"
    refused = client.get("/", headers={"Host": "evil.example"})
    assert (refused.status_code, "TUNEYARD_ALLOWED_HOSTS" in refused.text) == (421, True)
    with client.websocket_connect("/events"):
        pass
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/events", headers={"Host": "evil.example"}):
        pytest.fail("connected")
    page = {"Origin": "http://evil.example"}
    refused = client.get("/", headers=page)
    assert (refused.status_code, "http://evil.example" in refused.text) == (403, True)
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/events", headers=page):
        pytest.fail("connected")


@pytest.mark.stack
@pytest.mark.parametrize("path", ["/", "/api/health", "/api/flow_runs/filter", "/docs", "/health", "/api/csrf-token"])
def test_the_servers_of_the_stack_look_too(stack, path):
    for url in (stack.prefect_api_url.removesuffix("/api"), stack.mlflow_tracking_uri):
        with httpx.Client(base_url=url, timeout=60) as client:
            for method in ("GET", "POST", "OPTIONS"):
                answer = client.request(method, path, headers={"Host": "evil.example", "Origin": "http://evil.example"})
                assert answer.status_code == 421
                assert not {name for name in answer.headers if name.startswith("access-control-")}
                asked = {"Access-Control-Request-Method": "POST"}
                answer = client.request(method, path, headers={"Origin": "http://evil.example"} | asked)
                assert answer.status_code == 403
                assert not {name for name in answer.headers if name.startswith("access-control-")}
            assert client.get(path).status_code != 421
