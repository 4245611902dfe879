"""Logs one ERROR line with code and sentence for a failing run, instead of Prefect's seven with four tracebacks."""

import copy
import functools
import logging

from prefect.exceptions import CancelledRun

from jobs.settings import Settings
from sft.errors import TuneyardError
from tasks.causes import Cause, explain

TASK_LOGGER = "prefect.task_runs"
LOGGERS = (TASK_LOGGER, "prefect.flow_runs", "prefect.engine")
# Prefect's messages about a flow's own error, as opposed to an error of a hook or of loading the flow.
_A_STATE, _COMPLETED = "Finished in state", "Finished in state Completed("
_OF_THE_FLOW = ("Encountered exception", "Engine execution", "Execution")


def write_failures_once() -> None:
    """Make Prefect's loggers in this process log an error once; with TUNEYARD_DEBUG they are unchanged."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, FailureFilter) for one in logger.filters):
            logger.addFilter(FailureFilter())


class FailureFilter(logging.Filter):
    """Replaces Prefect's first record of an error by ours and drops the others.

    The traceback of an internal error, which is a bug, goes to this process's log and not to Prefect's API.
    """

    logged: tuple[BaseException, ...] = ()  # shared by all loggers, as a flow's error passes several of them

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to write the record, possibly with another message."""
        if is_debugging():
            return True
        if record.getMessage().startswith(_A_STATE):
            return record.getMessage().startswith(_COMPLETED)  # other states are logged by the error or the flow
        error = _find_error(record) if record.levelno >= logging.ERROR else None
        if error is None:
            return True
        is_known = any(error is one for one in FailureFilter.logged)
        if is_known or record.name == TASK_LOGGER or isinstance(error, CancelledRun):
            return False  # a task's error is logged as the flow's; CancelledRun is a state the flow returned
        FailureFilter.logged += (error,)
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
    # A hook's error is a bug; the flow's error before it is only context.
    bug = Cause(TuneyardError.code, f"{type(error).__name__}: {error}", False)
    cause = explain(error) if is_of_the_flow else bug
    if cause.code == TuneyardError.code:
        with_traceback = copy.copy(record)
        for handler in logging.getLogger().handlers:
            handler.handle(with_traceback)
    said = f"{cause.code}: {'; '.join(cause.message.splitlines())}"
    record.msg = said if is_of_the_flow else f"{message}: {said}"
    record.args, record.exc_info, record.exc_text = (), None, None
