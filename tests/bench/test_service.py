"""A short form of `tests.bench.lists` and `tests.bench.submissions`: what does not depend on the machine's speed."""

import asyncio
from pathlib import Path

import pytest

from tests.bench import lists, submissions
from tests.live_service import running_service

JOBS = 5000


@pytest.mark.stack
@pytest.mark.timeout(700)
def test_a_long_list_takes_no_memory_and_submissions_together_keep_their_order(tmp_path: Path) -> None:
    with running_service(tmp_path) as (settings, url):
        lists.fill_history(settings, url, JOBS)
        figures = lists.measure(settings, url)
        made = asyncio.run(submissions.measure(settings, url, 100, 25))
    for name in lists.PATHS:
        assert (figures[f"{name}_jobs"], figures[f"{name}_doubled"]) == (JOBS, 0)
        assert figures[f"{name}_growth_mb"] < 50
    assert (made["lost"], made["doubled"], made["out_of_order"]) == (0, 0, 0)
    assert made["ratio"] > 0.25  # both are measured on a machine that runs other tests
