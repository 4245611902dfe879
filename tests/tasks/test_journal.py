"""How an attempt's end is recorded: as the job's, or as one that another attempt gets over."""

import logging
import os
import signal
import time
from uuid import UUID, uuid4

import pytest
from prefect.exceptions import Abort, TerminationSignal

from jobs.lifecycle.attempts import read_attempts
from jobs.spec import JobSpec
from jobs.storage.events import read_events
from jobs.storage.reports import read_reports
from jobs.storage.tables import JobAttempt, JobReport, engine_for
from sft.config import SFTConfig
from sft.errors import InvalidDataset, ModelNotFound, StackError
from tasks import lacking
from tasks.journal import open_journal

pytestmark = pytest.mark.stack

SPEC = JobSpec(config=SFTConfig(base_model="tiny/llama", dataset_name="handbook@v1.0", dataset_format="alpaca"))

LACK = ModelNotFound("base_model 'a/b' was not found")


class Record:
    """What is known of a job whose journal a test opens."""

    def __init__(self, stack):
        self.stack = stack
        self.job_id: UUID = uuid4()
        self._engine = engine_for(stack.database_url)

    def open(self):
        return open_journal(self.stack, self.job_id, SPEC)

    @property
    def report(self) -> JobReport:
        return read_reports(self._engine, [self.job_id])[self.job_id]

    @property
    def attempt(self) -> JobAttempt:
        return read_attempts(self._engine, [self.job_id])[self.job_id]

    @property
    def outcomes(self):
        return [event.data["outcome"] for event in read_events(self._engine, self.job_id) if event.event == "end"]


@pytest.fixture
def record(stack):
    return Record(stack)


def test_an_error_of_the_job_is_its_end(record):
    def fail():
        with record.open() as journal:
            journal.enter("tokenizing")
            raise InvalidDataset("no rows")

    with pytest.raises(InvalidDataset):
        fail()
    assert (record.report.error, record.report.error_code, record.report.phase) == (
        "no rows", "invalid_dataset", "tokenizing"
    )  # fmt: skip
    assert (record.attempt.token, record.attempt.cause, record.outcomes) == (None, None, ["failed"])


def test_what_another_attempt_may_get_over_ends_only_this_one(record):
    with pytest.raises(Abort), record.open():
        raise StackError("nobody there")
    assert record.report.error is None
    assert (record.attempt.cause, record.attempt.message) == ("stack_unavailable", "nobody there")
    assert (record.attempt.is_interrupted, record.outcomes) == (False, ["interrupted"])

    with record.open() as journal:
        assert journal.attempt.number == 2
    assert (record.attempt.cause, record.outcomes) == (None, ["interrupted", "completed"])


def test_a_host_that_lacks_the_model_leaves_the_job_to_others(record, monkeypatch):
    def fail(error):
        with record.open() as journal:
            if isinstance(error, StackError):
                journal.record("begin", {})
            raise error

    monkeypatch.setattr("tasks.journal.HOLD_SECONDS", 0)
    monkeypatch.setattr(lacking, "count_other_workers", lambda _: 1)
    for error in [LACK, LACK, LACK, StackError("lost"), LACK, LACK]:  # those after it has trained elsewhere
        with pytest.raises(Abort):
            fail(error)
        assert (record.attempt.is_interrupted, record.report.status) == (error is LACK, None)
    assert "lacks the job's model" in record.attempt.message
    monkeypatch.setattr(lacking, "count_other_workers", lambda _: 0)
    with pytest.raises(ModelNotFound):
        fail(LACK)
    assert (record.report.status, record.report.error_code) == ("failed", "model_not_found")


def test_a_model_that_no_host_has_is_not_found_in_the_end(record, monkeypatch):
    def fail():
        with record.open():
            raise LACK

    monkeypatch.setattr("tasks.journal.HOLD_SECONDS", 0)
    monkeypatch.setattr(lacking, "count_other_workers", lambda _: 1)
    for _ in range(3):
        with pytest.raises(Abort):
            fail()
    with pytest.raises(ModelNotFound):
        fail()
    assert (record.report.status, record.report.error_code) == ("failed", "model_not_found")


def test_the_first_of_several_stops_counts_and_lets_the_work_be_saved(record):
    def stop(number, _frame):
        raise TerminationSignal(signal=number)

    saved = []

    def work():
        with record.open():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # the kernel's, as the process between is killed
                time.sleep(0.05)
                saved.append("the last step")

    former = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Abort):
            work()
    finally:
        signal.signal(signal.SIGTERM, former)
    assert saved
    assert (record.attempt.is_interrupted, record.attempt.token, record.outcomes) == (True, None, ["interrupted"])


class StopWhileLogging(logging.Handler):
    """Has SIGTERM come while a line is written, as it may."""

    def __init__(self):
        super().__init__()
        self.written = []

    def emit(self, line):
        if not self.written:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(100):  # bytecode, between which Python delivers signals
                time.sleep(0)
        self.written.append(line.getMessage())


def test_a_stop_waits_until_a_log_line_is_written(record):
    """Raised while logging holds its locks, it would leave them taken, and the process would never end."""

    def stop(number, _frame):
        raise TerminationSignal(signal=number)

    handler, lines = StopWhileLogging(), logging.getLogger("tasks.stopped")
    lines.addHandler(handler)
    former = signal.signal(signal.SIGTERM, stop)

    def work():
        with record.open():
            lines.warning("a line")
            time.sleep(5)
            lines.warning("too late")

    try:
        with pytest.raises(Abort):
            work()
    finally:
        signal.signal(signal.SIGTERM, former)
        lines.removeHandler(handler)
    assert handler.written == ["a line"]
    assert record.attempt.is_interrupted


def test_parameters_that_are_edited_after_the_job_has_begun_change_nothing_of_it(record, caplog):
    with pytest.raises(Abort), record.open():
        raise StackError("nobody there")
    edited = SPEC.model_copy(update={"config": SPEC.config.model_copy(update={"seed": 7, "lora_r": 64})})
    with open_journal(record.stack, record.job_id, edited) as journal:
        assert journal.spec == SPEC
    assert "edited after its job had started" in caplog.text
