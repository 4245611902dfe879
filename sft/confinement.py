"""Limits on CPU time and memory for reading untrusted files: rows, tokenizers, chat templates.

A chat template is a program and a tokenizer's pattern may never end, and both hold the GIL, so no Python signal
handler runs meanwhile. The kernel therefore ends the process with SIGPROF. The process notes its current step in a
file that its parent has open too, from which `explain_end` says why it ended.
"""

import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sft.errors import ModelUnusable, ResourceLimit, TuneyardError, walk_causes

SECONDS_A_MEGABYTE = 5.0  # of input, added to a step's time limit
NOTE_BYTES = 1024
WHAT_CHARACTERS = 200
PANIC = "PanicException"  # raised by Rust libraries (tokenizers); its module pyo3_runtime can't be imported
# Signals by which an input can end a process: too much time, an allocation that failed outside of Python, a stack
# overflow. SIGKILL comes from elsewhere.
FATAL = (signal.SIGPROF, signal.SIGXCPU, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
NO_THREAD_MEMORY = 127  # glibc's exit code when it has no memory for a thread
NO_THREAD = "ThreadPoolBuildError"  # Rust's error for the same
REMEDY = "name another dataset, model or template"


@dataclass(frozen=True)
class Limits:
    """Seconds of CPU time; bytes that may be allocated beyond what the process already has. None: no limit."""

    memory_bytes: int | None
    step_seconds: float  # for one step, such as rendering a row
    total_seconds: float | None


@dataclass
class _Confinement:
    limits: Limits
    note: int | None
    what: str
    charged_seconds: float = 0.0

    def begin(self, what: str, size_bytes: int) -> None:
        seconds = self.limits.step_seconds + SECONDS_A_MEGABYTE * size_bytes / 2**20
        if what:
            self.what = what
            self.write_note(seconds)
        signal.setitimer(signal.ITIMER_PROF, seconds)

    def end(self, default: str) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if not default:  # what comes next reads no input
            self.what = ""
            self.write_note(0)

    def write_note(self, seconds: float) -> None:
        if self.note is not None:
            noted = {"what": self.what[:WHAT_CHARACTERS], "seconds": seconds, **asdict(self.limits)}
            os.pwrite(self.note, (json.dumps(noted) if self.what else "").encode().ljust(NOTE_BYTES), 0)


_current: _Confinement | None = None  # one per process, as timers and limits are


@contextmanager
def confined(limits: Limits, note: int | None = None, default: str = "") -> Iterator[None]:
    """Apply these limits inside the block, and the time limit of a step to each `step` in it.

    Does nothing inside another such block.

    Args:
        note: file descriptor of `open_note`, where the parent reads the current step.
        default: name of the work outside of steps, for messages; if empty, only a step is named as the cause.

    Raises:
        ResourceLimit: the memory limit is reached. At a time limit the process ends.
        ModelUnusable: a Rust library panicked.
    """
    global _current
    if _current is not None:
        yield
        return
    confinement = _current = _Confinement(limits, note, default)
    confinement.write_note(limits.step_seconds)
    lowered = [*_lower(limits)]
    try:
        yield
    except BaseException as error:
        problem = _explain_error(error, confinement)
        if problem is None:
            raise
        error.__traceback__ = None  # its frames hold the memory
        raise problem from None
    finally:
        for kind, before in lowered:
            resource.setrlimit(kind, before)
        confinement.end("")
        _current = None


def share_limits(processes: int) -> Limits | None:
    """The limits for each of so many processes that do this one's work; None outside of `confined`."""
    if _current is None:
        return None
    limits = _current.limits
    return replace(limits, memory_bytes=limits.memory_bytes and limits.memory_bytes // processes)


@contextmanager
def confined_alone(limits: Limits | None, note: int | None, default: str = "") -> Iterator[None]:
    """In a forked process: apply these limits in place of those that it inherited; without limits apply none."""
    global _current
    _current = None
    with nullcontext() if limits is None else confined(limits, note, default):
        yield


def charge(cpu_seconds: float) -> None:
    """Count CPU time of another process against this one's limit; does nothing outside of `confined`."""
    if _current is None or _current.limits.total_seconds is None:
        return
    before = int(_current.charged_seconds)
    _current.charged_seconds += cpu_seconds
    if whole := int(_current.charged_seconds) - before:
        soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (max(soft - whole, 1), hard))


def explain_error(error: BaseException) -> TuneyardError | None:
    """Translate an error that the input causes, for lack of memory or in a Rust library; None for others."""
    return _explain_error(error, _current) if _current else None


@contextmanager
def step(what: str = "", size_bytes: int = 0) -> Iterator[None]:
    """Name the work of the block for messages and start its time limit; does nothing outside of `confined`.

    An inner step starts a new time limit; the rest of the outer one is then not timed.

    Args:
        what: the field and the work; empty keeps the current name.
        size_bytes: size of the input, which extends the time limit.
    """
    if _current is None:
        yield
        return
    default = _current.what
    _current.begin(what, size_bytes)
    try:
        yield
    finally:
        if _current is not None:
            _current.end(default)


def find_memory_limit() -> int | None:
    """The memory limit in bytes; None without one."""
    return _current.limits.memory_bytes if _current else None


def open_note() -> int:
    """Open an anonymous file for a child's note, which inherits it; in memory if possible, as disks may be full."""
    if sys.platform == "linux":
        return os.memfd_create("note")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def is_reading(note: Path) -> bool:
    """Whether the process of this note is in confined work. Raises OSError."""
    with note.open("rb") as file:
        return bool(file.read(NOTE_BYTES).strip())


def explain_end(code: int, note: int) -> ResourceLimit | None:
    """Explain why a child exited with this code; None if its input is not the cause.

    Args:
        code: as in `subprocess`, negative for a signal.
        note: the child's note, from `open_note`.
    """
    content = os.pread(note, NOTE_BYTES, 0).rstrip()
    number = signal.SIGABRT if code == NO_THREAD_MEMORY else -code
    if number not in FATAL or not content:
        return None
    noted = json.loads(content)
    if number == signal.SIGPROF:
        said = f"takes more than {noted['seconds']:.3g} s of CPU time (TUNEYARD_INPUT_STEP_SECONDS)"
    elif number == signal.SIGXCPU:
        said = f"reading all takes more than {noted['total_seconds']:g} s of CPU time (TUNEYARD_INPUT_SECONDS)"
    elif number == signal.SIGABRT:
        return ResourceLimit(_explain_memory(noted["what"], noted["memory_bytes"]))
    else:
        said = f"ends its process with {signal.Signals(number).name}"
    return ResourceLimit(f"{noted['what']} {said}; {REMEDY}")


def _explain_error(error: BaseException, confinement: _Confinement) -> TuneyardError | None:
    """Translate errors that the input causes: no memory, or a Rust panic, which is not an Exception."""
    chain = [*walk_causes(error)]
    if panic := next((one for one in chain if type(one).__name__ == PANIC), None):
        if NO_THREAD in str(panic) and confinement.limits.memory_bytes is not None:
            return ResourceLimit(_explain_memory(confinement.what, confinement.limits.memory_bytes))
        reason = (str(panic).splitlines() or [""])[0][:WHAT_CHARACTERS]
        return ModelUnusable(f"{confinement.what} fails ({reason}); {REMEDY}")
    if isinstance(error, ResourceLimit) or confinement.limits.memory_bytes is None:
        return None
    if any(isinstance(one, MemoryError) for one in chain):
        return ResourceLimit(_explain_memory(confinement.what, confinement.limits.memory_bytes))
    return None


def _explain_memory(what: str, memory_bytes: int | None) -> str:
    allowed = f"the {memory_bytes / 2**20:,.0f} MiB of memory" if memory_bytes else "the memory"
    return f"{what} takes more than {allowed} that is allowed for it (TUNEYARD_INPUT_MEMORY_BYTES); {REMEDY}"


def _lower(limits: Limits) -> Iterator[tuple[int, tuple[int, int]]]:
    """Lower this process's resource limits; yields each one with its former value."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted: dict[int, int] = {}
    if limits.total_seconds is not None:
        wanted[resource.RLIMIT_CPU] = int(used.ru_utime + used.ru_stime + limits.total_seconds) + 1
    if limits.memory_bytes is not None and sys.platform == "linux":
        wanted[resource.RLIMIT_DATA] = _allocated_bytes() + limits.memory_bytes
    for kind, value in wanted.items():
        soft, hard = resource.getrlimit(kind)
        allowed = [one for one in (soft, hard, value) if one != resource.RLIM_INFINITY]
        resource.setrlimit(kind, (min(allowed), hard))
        yield kind, (soft, hard)


def _allocated_bytes() -> int:
    with Path("/proc/self/status").open(encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData:"))
