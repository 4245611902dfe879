"""Own addresses go by no proxy in any client, and a variable that would break every client is ignored by name."""

import urllib.request

import httpx
import pytest

from jobs.engine.credentials import open_client
from jobs.engine.prefect_client import open_prefect_client
from jobs.network.proxies import bypass_proxies
from jobs.settings import Settings
from jobs.stack.parts import stack_environment
from jobs.stack.readiness import check_parts
from tuneyard_client import Tuneyard
from tuneyard_wire.loopback import is_on_this_machine

OWN = ("http://127.0.0.1:4200/api", "http://localhost:9", "http://[::1]:1")  # nothing listens on 9
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "NO_PROXY", "no_proxy")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names no proxy yet."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("proxy", ["http://proxy:3128", "proxy:3128", "socks5://h:1", "socks4://h:1", "http://h:bad"])
@pytest.mark.parametrize(
    "exceptions",
    [None, "", "*", "a,*", "corp.example", "[::1]", "fe80::/10, 10.0.0.0/8", "::1", "ü.example", "[::1]:80"],
)
def test_no_client_asks_a_proxy_for_this_machine(
    environment: pytest.MonkeyPatch, proxy: str, exceptions: str | None
) -> None:
    given = dict.fromkeys(("HTTP_PROXY", "https_proxy", "ALL_PROXY"), proxy)
    given |= {"NO_PROXY": exceptions} if exceptions is not None else {}
    bypass_proxies(given)
    for name, value in given.items():
        environment.setenv(name, value)
    with httpx.Client() as client:  # which raises for each of these variables that it can't read
        for url in OWN:
            assert client._transport_for_url(httpx.URL(url)) is client._transport
    for host in ("127.0.0.1:4200", "localhost"):
        assert urllib.request.proxy_bypass(host)


def test_servers_elsewhere_keep_the_proxy_and_the_exceptions_of_the_user() -> None:
    given = {"HTTPS_PROXY": "http://proxy:3128", "no_proxy": "corp.example", "NO_PROXY": "10.0.0.0/8"}
    assert bypass_proxies(given, ["192.168.1.5"]) == []
    assert given["HTTPS_PROXY"] == "http://proxy:3128"
    assert given["NO_PROXY"] == given["no_proxy"] == "corp.example,10.0.0.0/8,localhost,127.0.0.1,::1,192.168.1.5"


def test_what_is_left_out_is_named_and_why() -> None:
    notes = bypass_proxies({"ALL_PROXY": "socks5://h:1", "NO_PROXY": "[::1]:80"})
    assert [note.split(" is ignored")[0] for note in notes] == ["ALL_PROXY", "NO_PROXY's entry '[::1]:80'"]
    assert "'socksio' package is not installed" in notes[0]


def test_the_parts_of_the_stack_and_its_clients_are_spared(tmp_path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ALL_PROXY", "socks5://h:1")
    environment.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    given = stack_environment(Settings(home=tmp_path, host="192.168.1.5"))
    assert "ALL_PROXY" not in given
    assert given["HTTP_PROXY"] == "http://127.0.0.1:9"
    assert given["NO_PROXY"].split(",") == ["localhost", "127.0.0.1", "::1", "192.168.1.5"]

    settings = Settings(
        home=tmp_path, prefect_api_url=OWN[0], mlflow_tracking_uri=OWN[1], database_url="postgresql://127.0.0.1:9/t"
    )
    for client in (
        open_client(settings),
        open_prefect_client(settings)._client,
        Tuneyard(OWN[1])._http,
    ):  # neither raises nor uses it
        assert client._transport_for_url(httpx.URL(OWN[0])) is client._transport
        client.close()
    assert check_parts(settings)["mlflow"].detail.startswith("does not respond (no connection")


def test_a_server_of_the_users_elsewhere_is_asked_by_the_proxy(tmp_path, environment: pytest.MonkeyPatch) -> None:
    environment.setenv("HTTPS_PROXY", "http://proxy:3128")
    settings = Settings(home=tmp_path, prefect_api_url="https://prefect.example/api")
    with open_client(settings) as client:
        assert client._transport_for_url(httpx.URL("https://prefect.example/api")) is not client._transport


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        *(
            (url, True)
            for url in (*OWN, "http://LOCALHOST.:1", "http://a.localhost", "http://127.1.2.3", "http://0.0.0.0")
        ),
        *(
            (url, False)
            for url in ("https://x.example", "http://10.0.0.1", "", "postgresql:///x", "http://[", "http://h")
        ),
    ],
)
def test_loopback_addresses_are_known_in_every_spelling(url: str, expected: bool) -> None:
    assert is_on_this_machine(url) is expected
