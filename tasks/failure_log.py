"""One ERROR line for a run that fails: its code and sentence, where Prefect writes seven and four tracebacks."""

import copy
import functools
import logging

from prefect.exceptions import CancelledRun

from jobs.settings import Settings
from sft.errors import TuneyardError
from tasks.causes import Cause, explain

TASK_LOGGER = "prefect.task_runs"
LOGGERS = (TASK_LOGGER, "prefect.flow_runs", "prefect.engine")
# What Prefect says around a flow's own error, as opposed to one of a hook or of loading the flow.
_A_STATE, _COMPLETED = "Finished in state", "Finished in state Completed("
_OF_THE_FLOW = ("Encountered exception", "Engine execution", "Execution")


def write_failures_once() -> None:
    """From here on Prefect's loggers in this process tell of an error once; with TUNEYARD_DEBUG as Prefect does."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, FailureFilter) for one in logger.filters):
            logger.addFilter(FailureFilter())


class FailureFilter(logging.Filter):
    """Makes Prefect's first record of an error ours and drops the others.

    The traceback of an internal error, which is a bug, goes to this process's log and not to Prefect's API.
    """

    told: tuple[BaseException, ...] = ()  # of the process: the error of a flow passes several loggers

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written, perhaps in other words."""
        if is_debugging():
            return True
        if record.getMessage().startswith(_A_STATE):
            return record.getMessage().startswith(_COMPLETED)  # another is told by its error, or by the flow itself
        error = _find_error(record) if record.levelno >= logging.ERROR else None
        if error is None:
            return True
        is_known = any(error is one for one in FailureFilter.told)
        if is_known or record.name == TASK_LOGGER or isinstance(error, CancelledRun):
            return False  # a task's is also the flow's; CancelledRun is a state that the flow has returned
        FailureFilter.told += (error,)
        _rewrite(record, error)
        return True


@functools.cache
def is_debugging() -> bool:
    """Whether this process writes tracebacks."""
    return Settings().debug


def _find_error(record: logging.LogRecord) -> BaseException | None:
    if isinstance(record.exc_info, tuple):
        return record.exc_info[1]
    values = record.args if isinstance(record.args, tuple) else ()
    return next((value for value in values if isinstance(value, BaseException)), None)


def _rewrite(record: logging.LogRecord, error: BaseException) -> None:
    message = record.getMessage()
    is_of_the_flow = message.startswith(_OF_THE_FLOW)
    # A hook's error is a bug: what the flow has raised before is only its context.
    bug = Cause(TuneyardError.code, f"{type(error).__name__}: {error}", False)
    cause = explain(error) if is_of_the_flow else bug
    if cause.code == TuneyardError.code:
        with_traceback = copy.copy(record)
        for handler in logging.getLogger().handlers:
            handler.handle(with_traceback)
    said = f"{cause.code}: {'; '.join(cause.message.splitlines())}"
    record.msg = said if is_of_the_flow else f"{message}: {said}"
    record.args, record.exc_info, record.exc_text = (), None, None
