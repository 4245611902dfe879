"""What completed jobs took is read from when their phases began, whichever order they come in."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from sqlalchemy import insert

from jobs.results.history import read_past_runs
from jobs.storage.reports import write_report
from jobs.storage.tables import JobEvent, engine_for

pytestmark = pytest.mark.stack

BEGIN = {"trainable_parameters": 640, "dtype": "float32", "device": "cpu", "gradient_checkpointing": False}
ADAPTER_FIRST = [("starting", 0), ("training", 9), ("evaluating", 300), ("registering", 320)]
BASE_FIRST = [("starting", 0), ("evaluating", 9), ("training", 15), ("evaluating", 300), ("registering", 320)]
CHECKED = [*ADAPTER_FIRST[:3], ("checking", 320), ("registering", 322)]


@pytest.mark.parametrize("phases", [ADAPTER_FIRST, BASE_FIRST, CHECKED])
def test_the_start_ends_where_the_first_batch_is_taken(stack, phases):
    engine, job_id, base_model = engine_for(stack.database_url), uuid4(), f"nobody/{uuid4().hex}"
    metrics = {"steps": 4, "tokens": 400, "tokens_per_second": 20.0}
    write_report(engine, job_id, result={"base_model": base_model, "metrics": metrics})
    began_at = datetime(2026, 1, 1, tzinfo=UTC)
    told = [("phase", {"phase": phase}, second) for phase, second in phases]
    told += [("begin", BEGIN | {"step": 0}, 16), ("end", {"outcome": "completed"}, 324)]
    with engine.begin() as connection:
        for event, data, second in told:
            at = began_at + timedelta(seconds=second)
            connection.execute(insert(JobEvent).values(job_id=job_id, event=event, data=data, created_at=at))

    (run,) = read_past_runs(engine, base_model)

    times = {"startup_seconds": 9.0, "finish_seconds": 4.0}
    assert run == BEGIN | times | {"tokens_per_second": 20.0, "tokens_per_step": 100.0}
