"""A few hundred requests made from the OpenAPI document: no 5xx, every answer as documented. `make fuzz` sends more."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jobs.settings import Settings
from tests.fuzz.run import count, fuzz
from tests.live_service import pause_jobs, serving_api

pytestmark = pytest.mark.stack


@pytest.fixture
def url(stack: Settings) -> Iterator[str]:
    """Where the API is, over the tests' stack. Jobs wait, and are gone afterwards."""
    pause_jobs(stack)
    with serving_api(stack) as address:
        try:
            yield address
        finally:
            forget_waiting_jobs(stack)
            pause_jobs(stack, is_paused=False)


def forget_waiting_jobs(stack: Settings) -> None:
    """Take every job out of the line, so that those of other tests find it empty."""
    waiting = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    with httpx.Client(base_url=str(stack.prefect_api_url), timeout=30) as prefect:
        while runs := prefect.post("/flow_runs/filter", json=waiting).raise_for_status().json():
            for run in runs:
                prefect.delete(f"/flow_runs/{run['id']}").raise_for_status()


def test_no_request_is_answered_otherwise_than_documented(url: str, tmp_path: Path) -> None:
    report = fuzz(url, 1, 6, tmp_path, "--phases", "examples,fuzzing,stateful")

    counts = count([report])
    assert counts["failures"] == 0, report["text"]
    assert counts["cases"] >= 200
    assert counts["operations"] == report["operations"]["total"]
