"""What a job's process does with the trainers' role in a real PostgreSQL."""

import os

import pytest
from sqlalchemy import make_url, text

from jobs.lifecycle import claiming
from jobs.lifecycle.attempts import (
    Attempt,
    Superseded,
    has_concluded,
    mark_cancelled,
    mark_crashed,
    mark_interrupted,
    read_attempts,
)
from jobs.lifecycle.ends import keep_run, settle
from jobs.status import JobStatus
from jobs.storage import claims
from jobs.storage.events import read_events, write_event
from jobs.storage.reports import ProgressWriter, read_reports
from jobs.webhooks.outbox import list_deliveries
from sft.errors import StackError
from tests.trainers import FACTS, Trainer, state_of


def test_an_attempt_from_its_begin_to_its_end(trainer, owner, monkeypatch):
    with owner.begin() as connection:
        keep_run(connection, trainer.job_id, FACTS | {"parameters": {"webhook_url": "http://a.example/"}})
    attempt = trainer.begin(monkeypatch)
    with attempt.writing() as connection:
        keep_run(connection, trainer.job_id, FACTS, {"webhook_url": "http://a.example/", "config": {}})
        write_event(connection, trainer.job_id, "phase", {"phase": "training"})
    progress = ProgressWriter(attempt.writing, trainer.job_id)
    progress({"step": 1, "total_steps": 2, "percent": 50.0, "loss": 1.0})
    progress.finish()
    attempt.beat()
    assert attempt.end(JobStatus.COMPLETED)

    report = read_reports(owner, [trainer.job_id])[trainer.job_id]
    assert (report.status, report.progress["percent"]) == ("completed", 100.0)
    assert [event.event for event in read_events(owner, trainer.job_id)] == ["phase", "step"]
    assert [delivery.status for delivery in list_deliveries(owner, trainer.job_id)] == ["completed"]
    assert read_attempts(owner, [trainer.job_id])[trainer.job_id].database_role == trainer_role(trainer)
    with pytest.raises(Superseded):
        attempt.beat()


def trainer_role(trainer):
    return make_url(trainer.url).username


def test_a_job_that_nobody_has_seen_before_is_begun(trainer, owner, monkeypatch):
    """A run of Prefect's page, of which there is no report; its next attempt is another process."""
    trainer.begin(monkeypatch).release(cause="registry_unavailable", message="away")
    assert read_attempts(owner, [trainer.job_id])[trainer.job_id].cause == "registry_unavailable"
    assert Trainer(trainer.owner_url, trainer.job_id).begin(monkeypatch).number == 2


def test_a_lost_attempt_is_followed_by_another_process_and_writes_no_more(url, owner, victim, monkeypatch):
    lost = Attempt(victim.url, victim.job_id, 1, read_attempts(owner, [victim.job_id])[victim.job_id].token)
    with owner.begin() as connection:  # as the watchdog does
        connection.execute(text("UPDATE job_attempts SET token = NULL WHERE job_id = :id"), {"id": victim.job_id})
    following = Trainer(url, victim.job_id)
    attempt = following.begin(monkeypatch)
    assert attempt.number == 2
    attempt.beat()

    monkeypatch.setattr("jobs.lifecycle.attempts.engine_for", lambda _: victim.engine)
    with pytest.raises(Superseded), lost.writing():
        pass
    assert victim.run("SELECT count(*) FROM job_reports")[0] == (0,)


def test_a_stop_before_the_attempt_is_recorded_and_what_other_processes_may_not_say_is_left_out(
    trainer, victim, owner, monkeypatch
):
    mark_interrupted(trainer.engine, trainer.job_id)
    assert read_attempts(owner, [trainer.job_id])[trainer.job_id].is_interrupted
    before = state_of(owner, victim.job_id)
    mark_interrupted(Trainer(trainer.owner_url).engine, victim.job_id)
    assert state_of(owner, victim.job_id) == before


def test_a_keeper_records_the_crash_of_its_own_process_before_and_after_it_has_begun(
    trainer, victim, owner, monkeypatch
):
    with owner.begin() as connection:
        keep_run(connection, trainer.job_id, FACTS)
    assert mark_crashed(trainer.engine, trainer.job_id, os.getpid(), "killed", "early")
    assert read_attempts(owner, [trainer.job_id])[trainer.job_id].message == "early"
    trainer.begin(monkeypatch)
    assert mark_crashed(trainer.engine, trainer.job_id, os.getpid(), "killed", "late")
    attempt = read_attempts(owner, [trainer.job_id])[trainer.job_id]
    assert (attempt.message, attempt.token) == ("late", None)
    assert has_concluded(trainer.engine, trainer.job_id)

    before = state_of(owner, victim.job_id)
    mark_crashed(Trainer(trainer.owner_url).engine, victim.job_id, os.getpid(), "killed", "a lie")
    assert state_of(owner, victim.job_id) == before


def test_a_job_that_has_ended_is_not_begun_again(trainer, owner, monkeypatch):
    mark_cancelled(owner, trainer.job_id, FACTS)
    with pytest.raises(Superseded, match="cancelled"):
        trainer.begin(monkeypatch)
    assert trainer.run("SELECT count(*) FROM job_reports")[0] == (0,)


def test_a_cancelled_job_s_process_saves_its_last_step(victim, owner):
    assert mark_cancelled(owner, victim.job_id)
    victim.run("INSERT INTO job_events (job_id, event, data) VALUES (:id, 'checkpoint', '{}')", id=victim.job_id)
    assert [event.event for event in read_events(owner, victim.job_id)] == ["step", "checkpoint"]


def test_who_begins_while_another_process_works_on_the_job_waits_for_it(url, victim, owner, monkeypatch):
    waited = []

    def pause(seconds):
        waited.append(seconds)
        with owner.begin() as connection:
            connection.execute(
                text("UPDATE job_attempts SET heartbeat_at = now() - interval '31 s' WHERE job_id = :id"),
                {"id": victim.job_id},
            )

    following = Trainer(url, victim.job_id)
    assert claiming.claim_when_free(following.engine, victim.job_id, lambda _: "claimed", pause) == "claimed"
    assert waited == [claiming.PAUSE_SECONDS]

    monkeypatch.setattr(claiming, "WAIT_SECONDS", 0.0)
    following.begin(monkeypatch)
    with pytest.raises(StackError, match="another process has been working on the job"):
        claiming.claim_when_free(Trainer(url).engine, victim.job_id, lambda _: "claimed")


def test_prefects_hook_writes_the_end_of_a_job_that_never_began(trainer, owner):
    run = FACTS | {"id": str(trainer.job_id), "state_type": "FAILED", "state": {"message": "no"}, "run_count": 1}
    with trainer.engine.begin() as connection:
        assert claims.claim(connection, trainer.job_id) is None
        assert settle(connection, run)
    assert read_reports(owner, [trainer.job_id])[trainer.job_id].status == "failed"
