"""A run that fails writes one ERROR line; only a bug has a traceback, and that stays in this process's log."""

import logging

import pytest
from prefect.exceptions import CancelledRun

from jobs.sanitizing.log_lines import keep_lines_whole
from sft.errors import DatasetNotFound, InvalidConfig, ModelNotFound
from tasks.failure_log import LOGGERS, FailureFilter, is_debugging, write_failures_once

FAILURES = [
    (ModelNotFound("base_model 'x' was not found"), "model_not_found: base_model 'x' was not found"),
    (DatasetNotFound("no dataset 'x'"), "dataset_not_found: no dataset 'x'"),
    (InvalidConfig("lora_r: 0\nlora_alpha: 100%s"), "invalid_config: lora_r: 0; lora_alpha: 100%s"),
    (MemoryError("you tried to allocate 9 GB"), "out_of_memory: out of memory (MemoryError: you tried"),
    (KeyError("heads"), "internal_error: KeyError: 'heads'"),
]


class Written(logging.Handler):
    """What a handler of Prefect's API, or of the console, is given."""

    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)

    def errors(self):
        return [record.getMessage() for record in self.records if record.levelno >= logging.ERROR]

    def text(self):
        return "\n".join(map(logging.Formatter("%(levelname)s %(message)s").format, self.records))


@pytest.fixture
def written(monkeypatch):
    """What goes to Prefect's API and what to the console, while Prefect's loggers have neither."""
    factory = logging.getLogRecordFactory()
    api, console = Written(), Written()
    is_debugging.cache_clear()
    monkeypatch.setattr(FailureFilter, "logged", ())
    keep_lines_whole()
    monkeypatch.setattr(logging.getLogger(), "handlers", [console])
    for name in LOGGERS:
        monkeypatch.setattr(logging.getLogger(name), "handlers", [api])
        monkeypatch.setattr(logging.getLogger(name), "filters", [])
    write_failures_once()
    yield api, console
    logging.setLogRecordFactory(factory)
    is_debugging.cache_clear()


def fail(error):
    """Everything that Prefect 3.8's engine logs when a task of a flow raises."""
    task_log, run_log, engine_log = map(logging.getLogger, LOGGERS)
    try:
        raise error
    except Exception as caught:
        task_log.error(f"Task run failed with exception: {caught!r}", exc_info=True)
        task_log.error("Finished in state Failed('Task run encountered an exception')")
        run_log.exception("Encountered exception during execution: %r", caught)
        run_log.warning("Finished in state Failed('Flow run encountered an exception')")  # or info
        run_log.error("Engine execution exited with unexpected exception", exc_info=True)
        engine_log.error("Execution of flow run 'x' exited with unexpected exception", exc_info=True)


@pytest.mark.parametrize(("error", "said"), FAILURES, ids=lambda value: type(value).__name__)
def test_an_error_is_told_once_in_words_of_ours(written, error, said):
    api, console = written
    fail(error)
    (line,) = api.errors()
    assert line.startswith(said)
    assert "Traceback" not in api.text()
    assert len(api.records) == 1
    is_bug = said.startswith("internal_error")
    assert ("Traceback" in console.text()) is is_bug
    assert console.errors().count(line) == 1
    assert len(console.errors()) == 1 + is_bug


def test_debugging_leaves_everything_as_prefect_writes_it(written, monkeypatch):
    api, _ = written
    monkeypatch.setenv("TUNEYARD_DEBUG", "true")
    fail(ModelNotFound("no 'x'"))
    assert len(api.records) == 6
    assert api.text().count("Traceback") == 4


def test_what_is_no_error_of_the_flow_keeps_its_words(written):
    api, console = written
    run_log = logging.getLogger("prefect.flow_runs")
    run_log.warning("Finished in state Completed()")
    run_log.error("Crash detected! Execution was interrupted by an unexpected exception.")
    try:
        try:
            raise ModelNotFound("no 'x'")
        except ModelNotFound:
            raise TypeError("no JSON")  # noqa: B904 - as a hook does that runs while the flow's error is handled
    except TypeError:
        run_log.error("An error was encountered while running hook 'write_end'", exc_info=True)
    run_log.error("Finished in state Unchanged('it is', type=CANCELLED)")
    run_log.error("Engine execution exited", exc_info=CancelledRun("a state that the flow returned"))
    assert [record.getMessage() for record in api.records] == [
        "Finished in state Completed()",
        "Crash detected! Execution was interrupted by an unexpected exception.",
        "An error was encountered while running hook 'write_end': internal_error: TypeError: no JSON",
    ]
    assert "Traceback" in console.text()
