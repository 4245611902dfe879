"""A short `make chaos`: ten jobs, twelve faults, one of each of the first kinds."""

import pytest

from tests.chaos import invariants
from tests.chaos import run as chaos
from tests.chaos.run import Options, run
from tests.patience import BUSY

MINUTES = 13.0  # a quiet machine takes less than three


@pytest.mark.timeout(1200)
def test_every_promise_is_kept_whatever_dies(capsys, monkeypatch):
    for module, name in ((invariants, "BOUND_SECONDS"), (chaos, "READY_SECONDS"), (chaos, "GONE_SECONDS")):
        monkeypatch.setattr(module, name, BUSY * getattr(module, name))
    verdict = run(Options(jobs=10, faults=12, minutes=MINUTES))

    story = capsys.readouterr().out
    assert verdict.is_clean, story
    assert (verdict.counts["jobs"], verdict.counts["faults"]) == (10, 12), story
    assert verdict.counts["added"] > 0, story
    assert verdict.counts["answers"] > 0, story
