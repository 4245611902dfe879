"""A plan over HTTP for a device that need not be there, and what a client is told of one that is not known."""

from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient

from api.dependencies import get_service
from api.main import create_app
from jobs.clients.keys import ApiKeySnapshot
from jobs.settings import Settings
from sft.planning.devices import CARDS, Card
from tuneyard_wire.plan import Plan

BODIES = {
    "/train/plan": {"model_name": "tiny/llama", "dataset_version": "v1.0"},
    "/api/sft/plan": {"config": {"base_model": "tiny/llama", "dataset_name": "a@v1", "dataset_format": "alpaca"}},
}


class NotingPlanner:
    """Notes the device of each plan."""

    def __init__(self):
        self.devices = []

    def plan(self, _config, _settings, _is_cancelled, _client, device):
        self.devices.append(device)
        return Plan.example()


@pytest.fixture
def planner():
    return NotingPlanner()


@pytest.fixture
def client(tmp_path, planner):
    """Of a service without servers behind it, whose administrator has described a device."""
    settings = Settings(home=tmp_path, plan_devices={"Lab": Card(memory_gib=48)})
    app = create_app(settings)
    app.state.keys._read = lambda: ApiKeySnapshot({}, is_open=True)
    app.state.planner = planner
    app.dependency_overrides[get_service] = lambda: SimpleNamespace(settings=settings)
    return TestClient(app, base_url="http://127.0.0.1")


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("device", [None, "h100-80gb", "RTX4090", "lab"])
def test_the_planner_gets_the_device(client, planner, path, device):
    answer = client.post(path, json=BODIES[path], params={} if device is None else {"device": device})
    assert answer.status_code == 200
    assert planner.devices == [device]


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("device", "hint"),
    [("rtx4080", "did you mean rtx4090? "), ("", ""), ("h100-80gb\x1b[31m", "did you mean h100-80gb? ")],
)
def test_an_unknown_device_is_told_with_the_known_ones(client, planner, path, device, hint):
    answer = client.post(path, json=BODIES[path], params={"device": device})
    assert (answer.status_code, answer.json()["code"]) == (404, "device_not_found")
    assert answer.json()["detail"] == (
        f"device {device!r} is not known: {hint}known are {', '.join([*CARDS, 'lab'])}; leave it out for the device of "
        "this machine, or describe yours in TUNEYARD_PLAN_DEVICES"
    )
    assert planner.devices == []


def test_a_name_that_is_too_long_is_told_as_such(client, planner):
    answer = client.post("/train/plan", json=BODIES["/train/plan"], params={"device": "x" * 61})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert "device: must have at most 60 characters" in answer.json()["detail"]
    assert planner.devices == []
