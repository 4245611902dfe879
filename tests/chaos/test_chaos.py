"""A short `make chaos`: ten jobs, eight faults, one of each kind that is over within seconds."""

import pytest

from tests.chaos.run import Options, run

MINUTES = 9.0  # a quiet machine takes less than three


@pytest.mark.timeout(900)
def test_every_promise_is_kept_whatever_dies(capsys):
    verdict = run(Options(jobs=10, faults=8, minutes=MINUTES))

    story = capsys.readouterr().out
    assert verdict.is_clean, story
    assert (verdict.counts["jobs"], verdict.counts["faults"]) == (10, 8), story
