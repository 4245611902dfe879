"""`python -m jobs.keeper`, run by Prefect's worker: starts a job's training process and waits for it.

A worker that is stopped kills the process it has started within a tenth of a second. That is this one, of 10 MB; the
training process then gets SIGTERM from the kernel, and time to save its last step. The exit code is always 0, because
the watchdog and not the worker decides whether a lost job is retried. If the training process was ended by its input,
another attempt would be too, so the job's end is written from here (`jobs.overrun`).
"""

import ctypes
import os
import signal
import subprocess
import sys
from types import FrameType

from jobs.job_secret import make_secret
from jobs.privacy import UMASK
from jobs.scratch import lending_scratch
from jobs.worker_limit import worker_slot
from sft.confinement import explain_end, open_note

NOTE = "TUNEYARD_NOTE"  # file descriptor of the note on what the job reads (`sft.confinement`)
PARENT = "TUNEYARD_PARENT_PID"  # pid of the process that starts this one
_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent dies (on Linux).

    The kernel does not report a parent that died earlier, so its pid is compared with the one in PARENT; if it
    differs, this process gets the signal at once.
    """
    expected = os.environ.get(PARENT) or str(os.getppid())
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if str(os.getppid()) != expected:
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
    with worker_slot(lambda: bool(held)) as is_free:
        if not is_free:
            if not held:
                subprocess.run([sys.executable, "-m", "jobs.requeue"], check=False)
            return 0
        # The child inherits the blocked signal and unblocks it once it can handle it (`jobs.early_stop`).
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        # In its own session: a signal to the worker's process group would reach it twice.
        note = open_note()
        make_secret()
        with lending_scratch("job") as (more, handles):
            environment = os.environ | {PARENT: str(os.getpid()), NOTE: str(note)} | more
            command = [sys.executable, "-m", "flows"]
            child = subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=[note, *handles])
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            for late in held:
                child.send_signal(late)
            code = child.wait()
    if code < 0:
        sys.stderr.write(f"The job's process was ended by {signal.Signals(-code).name}\n")
    if problem := explain_end(code, note):
        subprocess.run([sys.executable, "-m", "jobs.overrun", str(problem)], check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
