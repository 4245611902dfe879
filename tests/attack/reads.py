"""Requests: keys that are none, times nobody can store, endless values, foreign names, a state folder that is moved."""

import base64
import json
import time
from collections.abc import Iterator

import httpx

from tests.attack.case import Finding, Harm, Target, case, rough_case
from tests.patience import PATIENCE

SOON_SECONDS = 6.0 * PATIENCE  # until every answer is there, whatever is asked
NEXT_SECONDS = 2.0 * PATIENCE  # until what comes next is answered
UNKNOWN = "00000000-0000-4000-8000-000000000000"
PATHS = ("/train", "/queue", f"/train/{UNKNOWN}", "/api/sft/jobs", "/api/sft/configs", "/metrics")
MOVED_SECONDS = 12.0  # longer than keys and the stack are taken for unchanged


@case
def a_key_that_is_none_opens_nothing(target: Target) -> Iterator[Finding]:
    """In every way a key can be absent or wrong."""
    key = target.keys["read"]
    wrong = [{}, {"Authorization": "Bearer"}, {"Authorization": f"Bearer {key[:-1]}"}, {"X-API-Key": key.upper()}]
    wrong += [{"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"}, {"X-API-Key": "' OR 1=1 --"}]
    wrong += [{"Authorization": "Bearer " + "x" * 7000}, {"Cookie": f"key={key}"}, {"X-Forwarded-For": "127.0.0.1"}]
    with target.client(None) as client:
        for headers in wrong:
            for path in (*PATHS, "/health%2f..%2ftrain", "//train", "/docs/..%2ftrain", f"/queue?key={key}"):
                answer = client.get(f"{target.url}{path}", headers=headers)
                if answer.status_code not in (401, 404):
                    yield Finding(Harm.OPENED, f"{path} with {headers}: {answer.status_code}")


@case
def a_read_key_changes_nothing(target: Target) -> Iterator[Finding]:
    """Whatever the method, and whatever other method the request claims to be."""
    with target.client("read") as client:
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            for path in ("/train", f"/train/{UNKNOWN}", "/api/sft/configs", f"/api/sft/jobs/{UNKNOWN}/stop"):
                answer = client.request(method, path, json={}, headers={"X-HTTP-Method-Override": "GET"})
                if answer.status_code not in (403, 404, 405):
                    yield Finding(Harm.OPENED, f"{method} {path}: {answer.status_code}")


@case
def times_that_nobody_can_store_are_refused_at_once(target: Target) -> Iterator[Finding]:
    """In a forged cursor and in every parameter that takes a time."""
    times = [
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "9999-12-31T23:59:59.999999-23:59",
        "-1",
        "1e308",
    ]
    with target.client("read") as client:
        for moment in times:
            cursor = base64.urlsafe_b64encode(json.dumps([moment, UNKNOWN]).encode()).decode().rstrip("=")
            for parameters in ({"cursor": cursor}, {"created_after": moment}, {"created_before": moment}):
                yield from _ask(client, "/train", parameters)


@case
def values_without_end_are_refused_by_name(target: Target) -> Iterator[Finding]:
    """Never passed on to a server behind the API that chokes on them."""
    bodies = [
        {"lora_target_modules": ["q_proj"] * 180_000}, {"lora_target_modules": "x" * 900_000},
        {"webhook_url": "http://127.0.0.1/" + "a" * 900_000}, {"metadata": {"a": "b" * 900_000}},
        {"run_name": "n" * 900_000}, {"model_name": "m/" * 400_000}, {"dataset_version": "v" * 900_000},
        {"tags": ["t" * 200] * 4000}, {"lora_name": "l" * 900_000},
    ]  # fmt: skip
    with target.client() as client:
        for body in bodies:
            yield from _ask(client, "/train", {}, {"model_name": "tiny/llama", **body})
        yield from _ask(client, "/train", {"name": "n" * 60_000})
        yield from _ask(client, f"/train/{'i' * 60_000}", {})


@case
def paths_without_end_hold_nobody_up(target: Target) -> Iterator[Finding]:
    """Without a key; what is asked next is answered at once."""
    with target.client(None) as client:
        for letters in ("i", "a://", "a:", "%0a", "%e2%80%ae", "../"):
            client.get(f"/health/{letters * (60_000 // len(letters))}")
            began = time.monotonic()
            client.get("/health")
            if (seconds := time.monotonic() - began) > NEXT_SECONDS:
                yield Finding(Harm.STARVED, f"{seconds:.1f} s for what came after a path of {letters!r}")


@case
def forged_json_is_refused(target: Target) -> Iterator[Finding]:
    """Too deep, too long a number, no UTF-8, another type than it says."""
    texts = [b"[" * 500_000, b'{"a":' * 100_000, b'{"batch_size": ' + b"9" * 900_000 + b"}", b"\xff\xfe", b'{"a": NaN}']
    with target.client() as client:
        for content in texts:
            began = time.monotonic()
            answer = client.post("/train", content=content, headers={"Content-Type": "application/json"})
            yield from _judge(f"{content[:12]!r}", answer, time.monotonic() - began)


@case
def pages_of_the_web_do_not_reach_prefect_and_mlflow(target: Target) -> Iterator[Finding]:
    """Under a name that somebody's DNS leads to this machine."""
    settings = target.service.settings
    for address in (str(settings.prefect_api_url) + "/health", str(settings.mlflow_tracking_uri) + "/health"):
        for name in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "evil.example:4200", "a@b"):
            answer = httpx.get(address, headers={"Host": name}, timeout=SOON_SECONDS)
            if answer.status_code < 400:
                yield Finding(Harm.OPENED, f"{address} as {name}: {answer.status_code}")


@rough_case
def a_moved_state_folder_opens_nothing(target: Target) -> Iterator[Finding]:
    """No request builds a new one, and none gets in without a key, neither meanwhile nor after it is back."""
    home = target.service.settings.home
    away = home.with_name("away")
    with target.others.resting(), target.client() as keyed, target.client(None) as stranger:
        home.rename(away)
        try:
            end = time.monotonic() + MOVED_SECONDS
            while time.monotonic() < end:
                keyed.get("/queue")
                if (answer := stranger.get("/queue")).status_code not in (401, 503):
                    yield Finding(Harm.OPENED, f"without a key while the folder is away: {answer.status_code}")
                time.sleep(0.5)
            if home.exists():
                yield Finding(Harm.ESCAPED, f"a new state folder was made: {sorted(home.iterdir())}")
        finally:
            if not home.exists():
                away.rename(home)
        while keyed.get("/queue").status_code != 200 and time.monotonic() < target.deadline - 1:
            time.sleep(0.5)
        if (answer := stranger.get("/queue")).status_code != 401:
            yield Finding(Harm.OPENED, f"without a key once the folder is back: {answer.status_code}")
        if (answer := keyed.get("/queue")).status_code != 200:
            yield Finding(Harm.STARVED, f"with a key once the folder is back: {answer.status_code}")


def _ask(
    client: httpx.Client, path: str, parameters: dict[str, str], body: dict[str, object] | None = None
) -> Iterator[Finding]:
    began = time.monotonic()
    method = "GET" if body is None else "POST"
    answer = client.request(method, path, params=parameters, json=body)
    shown = f"{method} {path[:30]} {str(parameters)[:60]} {str(body)[:80]}"
    yield from _judge(shown, answer, time.monotonic() - began)


def _judge(what: str, answer: httpx.Response, seconds: float) -> Iterator[Finding]:
    """An attack's answer is a refusal, soon, in few words."""
    if answer.status_code >= 500 or seconds > SOON_SECONDS:
        yield Finding(Harm.STARVED, f"{what}: {answer.status_code} after {seconds:.1f} s")
    if "Traceback" in answer.text or len(answer.content) > 100_000:
        yield Finding(Harm.LEAKED, f"{what}: {answer.text[:100]!r}")
