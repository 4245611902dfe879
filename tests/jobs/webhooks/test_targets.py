"""A webhook leads to public addresses only, whatever its URL is spelled like and whatever its name's server says."""

import ipaddress
import socket
import ssl
import sys
import threading
import time

import pytest

from jobs.webhooks.call import send
from jobs.webhooks.targets import ForbiddenTarget, check_target, may_connect
from tests.receiver import Receiver

# Hosts as URLs may have them. All are spelled out or, for the names, resolved by the stub below.
HOSTS = [
    # loopback
    "127.0.0.1", "127.1", "127.0.1", "127.255.255.254", "0", "0.0.0.0", "0.0.0.1", "localhost",  # noqa: S104
    "LOCALHOST",    "localhost.", "a.localhost", "127.0.0.1.",
    # decimal, octal, hexadecimal, mixed, overflowing
    "2130706433", "017700000001", "0x7f000001", "0x7f.1", "0x7f.0x0.0x0.0x1", "0177.0.0.1", "0177.0.0.01",
    "127.0x1", "00000177.1", "0X7F000001", "2852039166", "0xA9FEA9FE", "0251.0376.0251.0376", "127.0.0.1.1",
    "4294967297", "256.256.256.256",
    # private, shared, link-local, metadata, reserved, multicast, broadcast, documentation, benchmarks
    "10.0.0.1", "10.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "169.254.0.1",
    "169.254.169.254", "169.254.170.2", "100.100.100.200", "168.63.129.16", "192.0.0.192", "192.0.2.1", "198.18.0.1",
    "192.88.99.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    # IPv6: loopback, unspecified, v4-mapped, v4-compatible, NAT64, 6to4, Teredo, link-local, ULA, site-local ...
    "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::ffff:0:127.0.0.1]",
    "[::127.0.0.1]", "[::ffff:169.254.169.254]", "[64:ff9b::127.0.0.1]", "[64:ff9b::7f00:1]", "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::7f00:1]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]", "[2001:0:7f00:1::1]", "[fe80::1]",
    "[fe80::1%25lo]", "[fd00:ec2::254]", "[fc00::1]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]", "[3fff::1]",
    "[100::1]", "[5f00::1]",
    # names that lead inside, by what their servers say
    "inside.example", "metadata.google.internal", "mapped.example", "every.example", "127.0.0.1.nip.example",
    "xn--lcalhost-n4a.example", "unknown.example",
    # names of other letters, digits in circles, full-width dots, escapes
    "ⓛocalhost", "①②⑦.⓪.⓪.①", "127。0。0。1", "\uff11\uff12\uff17.0.0.1", "%31%32%37.0.0.1", "127%2e0%2e0%2e1",
    "localho%73t",
]  # fmt: skip
SPELLINGS = [
    "http://public.example@{canary}/", "http://93.184.216.34:80@{canary}/", "http://user:pw@{canary}/",
    "http://{canary}#@public.example/", "http://{canary}?@public.example/", "http://{canary}\\@public.example/",
    "http://public.example\\@{canary}/", "http:\\\\{canary}/", "http:/{canary}/", "http:///{canary}/", "//{canary}/",
    "http://public.example:80:{port}/", "http://[::1/", "http://[v1.a]:{port}/", "http:// {canary}/",
    "http://\t{canary}/", "http://public.example\r\nHost: {canary}/", "ftp://{canary}/", "gopher://{canary}/_",
    "file:///etc/passwd", "unix://{canary}/", "HTTP://LOCALHOST:{port}/", "https://{canary}/", "http://{canary}:0/",
]  # fmt: skip
SERVERS = {
    "inside.example": ["127.0.0.1"],
    "metadata.google.internal": ["169.254.169.254"],
    "mapped.example": ["::ffff:127.0.0.1"],
    "every.example": ["10.0.0.1", "127.0.0.1", "::1", "fe80::1"],
    "127.0.0.1.nip.example": ["127.0.0.1"],
    "xn--lcalhost-n4a.example": ["127.0.0.1"],
}

connections: list[object] = []
is_watched = threading.Event()
others: set[int] = set()  # threads of other tests, which may connect to what they like


def note_connection(event, arguments):
    if event == "socket.connect" and is_watched.is_set() and threading.get_ident() not in others:
        connections.append(arguments[1])


@pytest.fixture(scope="module", autouse=True)
def audit():
    """Every connection that this process makes while it is watched is noted: a hook can't be taken away again."""
    sys.addaudithook(note_connection)


@pytest.fixture
def watched(audit):
    connections.clear()
    others.clear()
    others.update(thread.ident for thread in threading.enumerate() if thread is not threading.current_thread())
    is_watched.set()
    yield connections
    is_watched.clear()


@pytest.fixture
def names(monkeypatch):
    """Answers of name servers by name, in turn and the last one for ever; what is spelled out is read as ever."""
    real, asked = socket.getaddrinfo, []
    servers = {name: [addresses] for name, addresses in SERVERS.items()}

    def resolve(host, port, *args, **kwargs):
        name = host.decode() if isinstance(host, bytes) else host
        try:
            return real(host, port, *args, **kwargs | {"flags": socket.AI_NUMERICHOST})
        except (OSError, UnicodeError):
            asked.append(name)
        if name == "localhost" or name.endswith(".localhost"):
            answer = ["127.0.0.1"]
        else:
            answers = servers.get(name)
            if answers is None:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return [entry for address in answer for entry in real(address, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    resolve.servers, resolve.asked = servers, asked
    return resolve


@pytest.fixture(scope="module")
def canary():
    """Nobody may ever call here."""
    receiver = Receiver(200)
    yield receiver
    assert receiver.requests == []
    receiver.close()


def call(url, allowed=()):
    return send(url, "msg_1", {"job_id": "1"}, [], [ipaddress.ip_network(text) for text in allowed])


def hostile_urls(port):
    by_host = [f"http://{host}:{port}/" for host in HOSTS]
    return by_host + [spelling.format(canary=f"127.0.0.1:{port}", port=port) for spelling in SPELLINGS]


def test_the_corpus_is_no_small_one():
    assert len(set(hostile_urls(1))) >= 100


def test_no_hostile_url_makes_a_connection(canary, names, watched):
    for url in hostile_urls(canary.url.rsplit(":", 1)[1]):
        outcome = call(url)
        assert outcome.error, url
        assert not outcome.is_delivered
        assert watched == [], url
    assert canary.requests == []


def test_the_canary_does_hear_what_reaches_it(names, watched):
    receiver = Receiver(200)
    names.servers["inside.example"] = [["127.0.0.1"]]
    outcome = call(receiver.url.replace("127.0.0.1", "inside.example"), ["127.0.0.1/32"])
    receiver.close()

    assert outcome.is_delivered
    assert watched == [("127.0.0.1", int(receiver.url.rsplit(":", 1)[1]))]
    assert receiver.requests[0][0]["Host"] == receiver.url.replace("127.0.0.1", "inside.example")[7:]


def test_a_name_that_answers_otherwise_the_next_time_is_asked_once(canary, names, watched):
    port = int(canary.url.rsplit(":", 1)[1])
    allowed = Receiver(200, host="127.0.0.2", port=port)
    names.servers["rebinding.example"] = [["127.0.0.2"], ["127.0.0.1"]]
    outcome = call(f"http://rebinding.example:{port}/", ["127.0.0.2/32"])
    allowed.close()

    assert outcome.is_delivered
    assert names.asked == ["rebinding.example"]
    assert watched == [("127.0.0.2", port)]
    assert call(f"http://rebinding.example:{port}/", ["127.0.0.2/32"]).error.startswith(
        "rebinding.example is 127.0.0.1"
    )


def test_of_several_addresses_only_those_are_tried_that_may_be(canary, names, watched):
    port = int(canary.url.rsplit(":", 1)[1])
    names.servers["several.example"] = [["10.9.9.9", "127.0.0.1", "127.0.0.2"]]
    outcome = call(f"http://several.example:{port}/", ["127.0.0.2/32"])

    assert outcome.error.startswith("no connection: ")  # nobody listens on the one that may be tried
    assert watched == [("127.0.0.2", port)]


def test_a_redirect_inside_is_not_followed(canary, watched):
    receiver = Receiver(307, host="127.0.0.2", headers={"Location": canary.url})
    outcome = call(receiver.url, ["127.0.0.2/32"])
    receiver.close()

    assert (outcome.status_code, outcome.is_delivered) == (307, False)
    assert len(watched) == 1


def test_a_proxy_of_the_environment_is_not_used(canary, monkeypatch, watched):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, canary.url)
    receiver = Receiver(200, host="127.0.0.2")
    assert call(receiver.url, ["127.0.0.2/32"]).is_delivered
    receiver.close()
    assert len(watched) == 1


def test_tls_is_asked_for_under_the_name_and_not_the_address(names):
    asked = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # no certificate: the handshake fails, but not before the name
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection, pytest.raises(ssl.SSLError):
                context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=answer)
        thread.start()
        outcome = call(f"https://inside.example:{server.getsockname()[1]}/", ["127.0.0.1"])
        thread.join()
    assert asked == ["inside.example"]
    assert outcome.error.startswith("no connection: ")


def test_a_receiver_that_never_stops_answering_is_left(monkeypatch):
    monkeypatch.setattr("jobs.webhooks.call.TIMEOUT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip():
            connection, _ = server.accept()
            with connection:
                try:
                    connection.sendall(b"HTTP/1.1 200 OK\r\n")
                    while True:
                        connection.sendall(b"X-More: 1\r\n")
                        time.sleep(0.05)
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        outcome = call(f"http://127.0.0.1:{server.getsockname()[1]}/", ["127.0.0.1"])
        thread.join()
    assert outcome.error.startswith("no response in time")
    assert time.monotonic() - began < 30  # it would never end


@pytest.mark.parametrize(
    "text", ["93.184.216.34", "8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses_may_be_called(text):
    assert may_connect(ipaddress.ip_address(text), [])


@pytest.mark.parametrize("host", ["127.0.0.1:9000", "localhost", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "[::1]"])
def test_what_is_spelled_out_is_refused_with_the_remedy(host):
    url = f"http://{host}/hook"
    with pytest.raises(ForbiddenTarget) as caught:
        check_target(url, [])
    for word in ("webhook_url", repr(url), "TUNEYARD_WEBHOOK_ALLOW="):
        assert word in str(caught.value)
    check_target(url, [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1")])


def test_names_are_left_to_the_call():
    check_target("https://inside.example/hook", [])
