"""Attempts that begin below what the store had are found, and no others."""

from datetime import UTC, datetime, timedelta

from tests.pool.observer import Resume, read_resumes

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds):
    return START + timedelta(seconds=seconds)


def attempt(begun_at, step):
    return [("phase", {"phase": "starting"}, at(begun_at)), ("begin", {"step": step}, at(begun_at + 1))]


def test_the_first_attempt_resumes_nothing():
    assert [*read_resumes("a", attempt(0, 0), {50: at(-5)})] == []


def test_an_attempt_is_compared_with_what_the_store_was_seen_to_have_by_then():
    events = [*attempt(0, 0), *attempt(60, 50), *attempt(90, 50)]
    stored = {50: at(20), 100: at(80), 150: at(99)}
    assert [*read_resumes("a", events, stored)] == [Resume("a", 2, 50, 50), Resume("a", 3, 50, 100)]


def test_what_the_job_said_is_in_the_store_counts_before_it_was_seen_there():
    events = [*attempt(0, 0), ("stored", {"step": 100}, at(30)), *attempt(60, 0)]
    assert [*read_resumes("a", events, {})] == [Resume("a", 2, 0, 100)]
