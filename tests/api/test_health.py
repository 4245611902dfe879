"""`/health`, `/ready` and `/metrics`, with the stack up and without one."""

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from api.main import create_app
from jobs.stack.readiness import check_parts
from tests.conftest import stack_settings, wait_until


def series(text):
    """Every sample as (name, labels) -> value."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_without_a_stack_the_process_answers_and_starts_none(tmp_path):
    api = TestClient(create_app(stack_settings(tmp_path / "home")))

    assert api.get("/health").json() == {"status": "ok", "version": "0.1.0"}
    answer = api.get("/ready")
    assert answer.status_code == 503
    assert answer.json() == {
        "ready": False,
        "parts": {
            "database": {"ok": False, "detail": "accepts no connections"},
            "prefect": {"ok": False, "detail": "does not respond (no connection)"},
            "mlflow": {"ok": False, "detail": "does not respond (no connection)"},
            "worker": {"ok": False, "detail": "unknown, Prefect does not respond (no connection)"},
            "work_pool": {"ok": False, "detail": "unknown, Prefect does not respond (no connection)"},
            "watchdog": {"ok": False, "detail": "unknown, the database does not respond"},
        },
    }
    assert api.get("/metrics").status_code == 503
    assert not (tmp_path / "home").exists()


@pytest.fixture
def ready(stack):
    """A test before may have ended a part, which is started again."""
    wait_until(lambda: all(check.ok for check in check_parts(stack).values()), 90)


@pytest.mark.stack
def test_with_the_stack_up_every_part_is_ready(stack, ready):
    answer = TestClient(create_app(stack)).get("/ready")

    assert answer.status_code == 200
    assert answer.json()["ready"] is True
    assert {name: part["ok"] for name, part in answer.json()["parts"].items()} == dict.fromkeys(
        ("database", "prefect", "mlflow", "worker", "work_pool", "watchdog"), True
    )
    assert answer.json()["parts"]["worker"]["detail"] == "1 online in work pool gpu"


@pytest.mark.stack
def test_one_missing_part_is_named(stack, ready, tmp_path):
    gone = stack_settings(tmp_path).mlflow_port
    settings = stack.model_copy(update={"mlflow_tracking_uri": f"http://127.0.0.1:{gone}"})
    answer = TestClient(create_app(settings)).get("/ready")

    assert answer.status_code == 503
    assert [name for name, part in answer.json()["parts"].items() if not part["ok"]] == ["mlflow"]


@pytest.mark.stack
def test_metrics_count_requests_by_route_template_and_jobs_by_status(stack, ready):
    api = TestClient(create_app(stack))
    for job_id in ("a", "b", "c"):
        api.get(f"/train/{job_id}")
        api.get(f"/nowhere/{job_id}")
    api.request("BREW", "/train")
    answer = api.get("/metrics")
    found = series(answer.text)

    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert found["tuneyard_http_requests_total", "/train/{job_id}", "404", "GET"] == 3
    assert found["tuneyard_http_requests_total", "(none)", "404", "GET"] == 3
    assert found["tuneyard_http_response_start_seconds_count", "/train/{job_id}", "GET"] == 3
    assert [key for key in found if "BREW" in key] == []
    assert {key[1] for key in found if key[0] == "tuneyard_jobs"} == {
        "queued", "running", "completed", "failed", "cancelled"
    }  # fmt: skip
    assert {key[1]: value for key, value in found.items() if key[0] == "tuneyard_part_ready"} == dict.fromkeys(
        ("database", "prefect", "mlflow", "worker", "work_pool", "watchdog"), 1
    )
    assert found["process_resident_memory_bytes",] > 10_000_000
