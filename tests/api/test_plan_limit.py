"""Plans of several clients at once: each has its share, and who wants more is told at once."""

import asyncio
import threading
from types import SimpleNamespace
from uuid import uuid4

import httpx
import pytest

from api.dependencies import get_service
from api.main import create_app
from jobs.clients.keys import ApiKeySnapshot, Client, KeyScope, hash_key
from jobs.settings import Settings
from tuneyard_wire.plan import Plan

BODY = {"model_name": "tiny/llama", "dataset_version": "v1.0"}


class SlowPlanner:
    """Makes plans that take until they are let go."""

    def __init__(self):
        self.clients, self.let_go = [], threading.Event()

    def plan(self, _config, _settings, _is_cancelled, client, _device):
        self.clients.append(client)
        assert self.let_go.wait(120)
        return Plan.example()


@pytest.fixture
def app(tmp_path):
    """With six keys, and no server behind it."""
    settings = Settings(home=tmp_path, max_plans=2)
    app = create_app(settings)
    clients = {hash_key(name): Client(uuid4(), name, KeyScope.SUBMIT, uuid4()) for name in "abcdef"}
    app.state.keys._read = lambda: ApiKeySnapshot(clients, is_open=False)
    app.state.planner = SlowPlanner()
    app.dependency_overrides[get_service] = lambda: SimpleNamespace(settings=settings)
    return app


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.02)


def test_more_plans_than_a_client_may_have_are_refused_and_those_of_others_are_made(app):
    planner = app.state.planner

    async def talk():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=120) as client:

            def ask(key):
                return client.post("/train/plan", json=BODY, headers={"Authorization": f"Bearer {key}"})

            begun = [asyncio.create_task(ask("a")) for _ in range(2)]
            await until(lambda: len(planner.clients) == 2)
            refused = await ask("a")
            begun += [asyncio.create_task(ask(key)) for key in "bbccdd"]
            await until(lambda: len(planner.clients) == 8)
            full = await ask("e")
            planner.let_go.set()
            made = [answer.status_code for answer in await asyncio.gather(*begun)]
            return refused, full, made, (await ask("a")).status_code

    refused, full, made, afterwards = asyncio.run(talk())
    assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
    assert "At most 2 plans" in refused.json()["detail"]
    assert "TUNEYARD_MAX_PLANS" in refused.json()["detail"]
    assert (full.status_code, full.json()["code"]) == (503, "busy")
    assert refused.headers["Retry-After"] == full.headers["Retry-After"] == "5"
    assert made == [200] * 8
    assert afterwards == 200
    assert len({*planner.clients}) == 4  # each is planned for under its own name
