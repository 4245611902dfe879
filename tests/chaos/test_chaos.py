"""A short `make chaos`: ten jobs, ten faults, one of each of the first kinds."""

import pytest

from tests.chaos.run import Options, run

MINUTES = 9.0  # a quiet machine takes less than three


@pytest.mark.timeout(900)
def test_every_promise_is_kept_whatever_dies(capsys):
    verdict = run(Options(jobs=10, faults=10, minutes=MINUTES))

    story = capsys.readouterr().out
    assert verdict.is_clean, story
    assert (verdict.counts["jobs"], verdict.counts["faults"]) == (10, 10), story
