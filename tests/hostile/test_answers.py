"""Whatever a webhook's receiver answers is settled: in time, in little memory, without a way elsewhere."""

import pytest

from tests.attack import answers


@pytest.mark.parametrize("name", list(answers.draw_answers()))
def test_an_answer_is_settled(name, monkeypatch):
    monkeypatch.setattr("jobs.webhooks.call.TIMEOUT_SECONDS", 0.7)
    outcome, seconds, growth = answers.call(answers.draw_answers()[name])
    assert isinstance(outcome, answers.CallOutcome), outcome
    assert outcome.error or outcome.status_code is not None
    assert not (name.startswith("redirect") and outcome.is_delivered)
    assert seconds < 20  # some would never end
    assert growth < answers.GROWTH_BYTES
    assert outcome.error is None or (outcome.error.isprintable() and len(outcome.error) <= 300)


def test_a_name_that_changes_its_address_leads_nowhere_else():
    assert [*answers.a_name_that_changes_its_address_leads_nowhere_else(None)] == []


@pytest.mark.parametrize("name", [name for name in answers.draw_answers() if name.startswith("endless")])
def test_a_receiver_that_sends_without_end_costs_little_time(name):
    """Early hints as fast as they go had kept a processor busy until the time of the attempt was over."""
    outcome, seconds, _ = answers.call(answers.draw_answers()[name])
    assert isinstance(outcome, answers.CallOutcome)
    assert seconds < answers.TIMEOUT_SECONDS / 2
