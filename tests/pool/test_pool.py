"""A short `make pool`: six jobs on three hosts that share nothing, and one of each of the first kinds of faults.

A host is lost with its disk, another one drained, one stands still, and one is cut off the network.
"""

import json
import os
import subprocess
import sys

import pytest

from jobs.project import PROJECT_ROOT
from tests.patience import BUSY, VARIABLE

JOBS, FAULTS = 6, 4  # more jobs than faults, so that each fault finds one at work
MINUTES = 11.0  # a quiet machine takes three


@pytest.mark.timeout(1000)
def test_jobs_outlive_the_hosts_they_run_on():
    options = {"--jobs": JOBS, "--faults": FAULTS, "--minutes": MINUTES, "--pairs": 0}
    words = [str(word) for option in options.items() for word in option]
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT), VARIABLE: str(BUSY)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.pool.run", *words],
        cwd=PROJECT_ROOT, env=environment, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip

    story = done.stdout + done.stderr
    assert done.returncode == 0, story
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["jobs"], found["faults"]) == (JOBS, FAULTS), story
    for name in ("lost", "doubled", "stuck", "undelivered", "orphaned", "restarted_below"):
        assert found[name] == 0, story
    assert found["bit_identical"], story
    assert found["resumed"], story
