"""`python -m jobs.keeper`, run by Prefect's worker: starts a job's training process and waits for it.

A worker that is stopped kills the process it has started within a tenth of a second. That is this process of 10 MB; the
training process then gets SIGTERM from the kernel, and time to save its last step. If the training process was ended by
its input, another attempt would be too, so the job's end is written from here (`jobs.overrun`).

Exit codes (decision 28):

- 0: the attempt has recorded how it ended: the job's end, a stop, an error that is worth a retry.
- the process's own code, or 128 plus the number of the signal that ended it: it ended without a record. The crash is
  recorded for the watchdog, which alone decides what follows. Only Prefect's process worker then gets 0, as it would
  report one crash twice, seconds apart; it too gets the code if the crash could not be recorded.

In a container this may be process 1, to which the kernel sends only signals that it handles, and whose children are all
orphans of the container.
"""

import os
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

from jobs.job_secret import make_secret
from jobs.privacy import UMASK
from jobs.scratch import lending_scratch
from jobs.worker_limit import worker_slot
from sft.confinement import explain_end, open_note
from sft.parent_death import request_parent_death_signal

NOTE = "TUNEYARD_NOTE"  # file descriptor of the note on what the job reads (`sft.confinement`)
PARENT = "TUNEYARD_PARENT_PID"  # pid of the process that starts this one
RUN = "PREFECT__FLOW_RUN_ID"


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies (on Linux).

    If its parent is not the one in PARENT, which then died earlier, this process gets the signal at once. Process 1 has
    no parent.
    """
    if os.getpid() == 1:
        return
    parent = int(os.environ.get(PARENT) or os.getppid())
    if not request_parent_death_signal(signal.SIGTERM, parent):
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Run `python -m flows` to its end, forwarding SIGTERM and SIGINT."""
    child: subprocess.Popen[bytes] | None = None
    held: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        if child is None:
            held.append(number)
        else:
            child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)
    end_with_parent()
    os.umask(UMASK)
    make_secret()
    with worker_slot(lambda: bool(held)) as is_free:
        if not is_free:
            module = "jobs.early_stop" if held else "jobs.requeue"
            return subprocess.run([sys.executable, "-m", module], check=False).returncode
        # The child inherits the blocked signal and unblocks it once it can handle it (`jobs.early_stop`).
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        # In its own session: a signal to the worker's process group would reach it twice.
        note = open_note()
        with lending_scratch("job") as (more, handles):
            environment = os.environ | {PARENT: str(os.getpid()), NOTE: str(note)} | more
            command = [sys.executable, "-m", "flows"]
            child = subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=[note, *handles])
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            for late in held:
                child.send_signal(late)
            code = wait_for(child)
    if code < 0:
        sys.stderr.write(f"The job's process was ended by {signal.Signals(-code).name}\n")
    problem = explain_end(code, note)
    if problem and subprocess.run([sys.executable, "-m", "jobs.overrun", str(problem)], check=False).returncode == 0:
        return 0
    if code:
        report_crash(child.pid, code)
    return 0


def wait_for(child: "subprocess.Popen[bytes]") -> int:
    """Wait for the child's end; returns its exit code as `subprocess` has it. Process 1 reaps all others meanwhile."""
    while os.getpid() == 1:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if pid == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            break
    return child.wait()


def report_crash(pid: int, code: int) -> NoReturn:
    """Become the process that records a crash and exits with the code for the worker; not one of the job's processes.

    Args:
        pid: of the training process.
        code: its exit code, as `subprocess` has it.
    """
    environment = {name: value for name, value in os.environ.items() if name != RUN}
    command = [sys.executable, "-m", "jobs.early_stop", "--crashed", str(pid), str(code), os.environ.get(RUN, "")]
    os.execve(sys.executable, command, environment)  # noqa: S606 - replaces this process


if __name__ == "__main__":
    sys.exit(main())
