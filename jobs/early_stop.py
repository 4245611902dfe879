"""`python -m jobs.early_stop`: records how a job's process ended if the process could not.

A SIGTERM received during a job's start-up is not counted as a failed attempt. A process that ended without a record is
reported by its keeper (`--crashed`), so that the watchdog learns of it at once, on other hosts too.

A job's first seconds are spent importing libraries, when there is nothing to save and a signal handler can do little.
The handler therefore replaces the process (exec) with this module, which records the stop and exits.
"""

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy import Engine

CRASHED = "--crashed"
PROCESS_WORKER = "PREFECT__CONTROL_PORT"  # set by Prefect's process worker alone
REPORT_SECONDS = 20  # for the database


def record_early_stop() -> None:
    """Handle SIGTERM until the attempt begins, which has its own handler; a blocked signal is delivered now."""
    signal.signal(signal.SIGTERM, _become_note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _become_note(_number: int, _frame: FrameType | None) -> None:
    os.execv(sys.executable, [sys.executable, "-m", "jobs.early_stop"])  # noqa: S606 - replaces this process


def main(arguments: Sequence[str]) -> int:
    """Record a stop of the job of PREFECT__FLOW_RUN_ID, or with `--crashed PID EXIT_CODE RUN_ID` a crash.

    Returns:
        The exit code for Prefect's worker, see `jobs.keeper`.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if arguments[:1] == [CRASHED]:
        pid, code, run_id = int(arguments[1]), int(arguments[2]), arguments[3]
        shown = 128 - code if code < 0 else code
        signal.signal(signal.SIGALRM, lambda *_: os._exit(shown))
        signal.alarm(REPORT_SECONDS)
        return 0 if _record_crash(pid, code, run_id) and PROCESS_WORKER in os.environ else shown
    from uuid import UUID

    from jobs.lifecycle.attempts import mark_interrupted

    mark_interrupted(_find_database(), UUID(os.environ["PREFECT__FLOW_RUN_ID"]))
    return 0


def _record_crash(pid: int, code: int, run_id: str) -> bool:
    """Record a crash; returns whether the watchdog knows of it."""
    from uuid import UUID

    from sqlalchemy.exc import SQLAlchemyError

    from jobs.lifecycle.attempts import mark_crashed
    from sft.errors import TuneyardError

    try:
        return mark_crashed(_find_database(), UUID(run_id), pid, *explain_exit(code))
    except (SQLAlchemyError, TuneyardError, ValueError) as error:
        sys.stderr.write(f"The end of the job's process could not be recorded ({type(error).__name__})\n")
        return False


def _find_database() -> "Engine":
    from jobs.settings import Settings
    from jobs.storage.tables import engine_for
    from sft.errors import StackError

    database_url = Settings().database_url
    if database_url is None:
        raise StackError("TUNEYARD_DATABASE_URL must be set where jobs run")
    return engine_for(database_url)


def explain_exit(code: int) -> tuple[str, str]:
    """Why a process was lost, as a code and a sentence.

    Args:
        code: as in `subprocess`, negative for a signal.
    """
    if -code == signal.SIGKILL:
        return "killed", "the job's process was killed, perhaps because memory ran out; see the logs of its host"
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return "crashed", f"the job's process {how}; see the worker's log"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
