"""Responses are as the wire models say, though lists of jobs are written without making any."""

import json
import logging
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi.testclient import TestClient

from api import sft_routes, train_routes
from api.dependencies import get_service
from api.main import create_app
from api.responses import respond
from api.training_request import TrainingRequest
from jobs.clients.keys import ApiKeySnapshot
from jobs.service.job import Job
from jobs.service.job_service import JobService
from jobs.settings import Settings
from jobs.spec import MadeBy, SavedConfigRef
from jobs.status import JobStatus
from tuneyard_wire.jobs import Progress, Result, SftJob, TrainJob
from tuneyard_wire.records import Checkpoint
from tuneyard_wire.response import Response

NOW = datetime(2026, 4, 5, 16, 20, 51, 118000, tzinfo=UTC)
ID = uuid.UUID("550e8400-e29b-41d4-a716-446655440000")
SPEC = TrainingRequest(lora_name="support", metadata={"team": "a"}).to_spec("handbook")
FULL = Job(
    id=ID,
    name="graceful-otter",
    status=JobStatus.COMPLETED,
    priority="high",
    spec=SPEC.model_copy(
        update={
            "saved_config": SavedConfigRef(config_id=str(ID), version=2, name="mine"),
            "made_by": MadeBy(flow="retrain", run_id=str(ID), adapter_version="3", reason="new", fingerprint="f"),
        }
    ),
    raw_config={},
    created_at=NOW,
    started_at=NOW,
    ended_at=NOW,
    phase="done",
    progress=Progress.example(),
    result=Result.example(),
    attempt=1,
    owner=ID,
)
WAITING = replace(
    FULL, status=JobStatus.QUEUED, spec=SPEC, started_at=None, ended_at=None, progress=None, result=None, attempt=None
)
UNREAD = replace(WAITING, spec=None, raw_config={"base_model": 3}, created_at=None)


class Jobs:
    """A service that has these jobs."""

    def __init__(self, *jobs: Job) -> None:
        self.settings = Settings()
        self._jobs = jobs

    def get(self, _: str, owner: uuid.UUID | None) -> Job:
        return self._jobs[0]

    def list_jobs(self, _: Any, limit: int, cursor: str | None) -> Any:
        return SimpleNamespace(jobs=self._jobs, next_cursor="more" if limit == len(self._jobs) else None)


def make_client(*jobs: Job) -> TestClient:
    app = create_app(Settings())
    app.state.keys._read = lambda: ApiKeySnapshot({}, is_open=True)
    app.dependency_overrides[get_service] = lambda: Jobs(*jobs)
    return TestClient(app, base_url="http://localhost")


@pytest.mark.parametrize("job", [FULL, WAITING, UNREAD], ids=["full", "waiting", "unread"])
@pytest.mark.parametrize(("model", "path"), [(TrainJob, "/train"), (SftJob, "/api/sft/jobs")], ids=["training", "sft"])
def test_a_job_in_a_list_and_alone_is_the_model(model: type[Response], path: str, job: Job) -> None:
    client = make_client(job)
    alone = client.get(f"{path}/{ID}")
    listed = client.get(path, params={"limit": 1})
    (in_list,) = listed.json() if model is TrainJob else listed.json()["jobs"]

    assert alone.json() == in_list
    assert set(in_list) == set(model.model_fields)
    assert model.model_validate_json(json.dumps(in_list), strict=True).model_dump(mode="json") == in_list
    assert listed.headers["content-type"] == alone.headers["content-type"] == "application/json"
    assert listed.headers["x-next-cursor"] == "more"
    assert "cursor=more" in listed.headers["link"]


def test_one_job_with_a_record_of_another_kind_hides_no_other() -> None:
    odd = replace(FULL, progress={"step": "three"}, result={"made": "elsewhere"})
    first, second = make_client(odd, FULL).get("/train").json()
    assert (first["progress"], first["result"]) == ({"step": "three"}, {"made": "elsewhere"})
    assert second["result"] == Result.example()


def test_what_is_not_a_number_is_null() -> None:
    odd = replace(FULL, progress=Progress.example() | {"loss": float("nan")})
    (job,) = make_client(odd).get("/train").json()
    assert job["progress"]["loss"] is None


def test_one_job_of_deep_parameters_hides_no_other() -> None:
    deep: dict[str, Any] = {}
    for _ in range(400):
        deep = {"deeper": deep}
    first, second = make_client(replace(UNREAD, raw_config=deep | {"x": float("nan")}), FULL).get("/train").json()
    assert first["config"] == deep | {"x": None}
    assert second["result"] == Result.example()


def test_what_a_caller_does_to_a_job_changes_no_other() -> None:
    one, other = (sft_routes.describe_job(FULL) for _ in range(2))
    one["metadata"]["team"] = "b"
    assert other["metadata"] == {"team": "a"}
    assert sft_routes.describe_job(FULL)["metadata"] == {"team": "a"}


def test_a_time_that_is_none_is_sent_as_it_is() -> None:
    values = {"step": 1, "path": "p", "time": "yesterday", "bytes": None, "complete": True, "model": None}
    assert json.loads(respond(Checkpoint, values).model_dump_json()) == values


def test_a_record_that_does_not_fit_is_sent_as_it_is_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "api.responses"):
        made = respond(Progress, {"step": 1, "total_steps": "many"})
    assert (made.step, made.total_steps) == (1, "many")
    assert "Progress: total_steps: Input should be a valid integer" in caplog.text


def test_both_interfaces_describe_what_they_share_alike() -> None:
    train, sft = train_routes.describe_job(FULL, cast(JobService, Jobs(FULL))), sft_routes.describe_job(FULL)
    shared = set(TrainJob.model_fields) & set(SftJob.model_fields) - {"status", "config"}
    assert {name: train[name] for name in shared} == {name: sft[name] for name in shared}
