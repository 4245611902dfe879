"""Limits on what other people's files may take while they are read: rows, tokenizers, chat templates.

A chat template is a program and a tokenizer's pattern may never end, and both hold the interpreter, so that no handler
of Python's runs meanwhile. The kernel therefore ends the process with SIGPROF. What it was at stands in a note, a file
that its parent has open too, which says why it ended (`explain_end`).
"""

import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from sft.errors import ModelUnusable, ResourceLimit, TuneyardError, walk_causes

SECONDS_A_MEGABYTE = 5.0  # of input, beside what a step may take anyway
NOTE_BYTES = 1024
WHAT_CHARACTERS = 200
PANIC = "PanicException"  # of the module pyo3_runtime, which can't be imported: Rust's libraries, tokenizers for one
# Signals that an input can end a process with: too much time, an allocation that failed outside of Python, a stack that
# is full. SIGKILL is somebody else's.
FATAL = (signal.SIGPROF, signal.SIGXCPU, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)
NO_THREAD_MEMORY = 127  # glibc leaves with it when it has no memory for a thread
NO_THREAD = "ThreadPoolBuildError"  # Rust's, for the same reason
REMEDY = "name another dataset, model or template"


@dataclass(frozen=True)
class Limits:
    """Seconds are of CPU time. Memory is what may be allocated beside what the process has. None: no limit."""

    memory_bytes: int | None
    step_seconds: float  # of one piece of work: to write a row by the template, say
    total_seconds: float | None


@dataclass
class _Confinement:
    limits: Limits
    note: int | None
    what: str

    def begin(self, what: str, size_bytes: int) -> None:
        seconds = self.limits.step_seconds + SECONDS_A_MEGABYTE * size_bytes / 2**20
        if what:
            self.what = what
            self.write_note(seconds)
        signal.setitimer(signal.ITIMER_PROF, seconds)

    def end(self, default: str) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if not default:  # what comes next is nobody's input
            self.what = ""
            self.write_note(0)

    def write_note(self, seconds: float) -> None:
        if self.note is not None:
            told = {"what": self.what[:WHAT_CHARACTERS], "seconds": seconds, **asdict(self.limits)}
            os.pwrite(self.note, (json.dumps(told) if self.what else "").encode().ljust(NOTE_BYTES), 0)


_current: _Confinement | None = None  # of the process, as timers and limits are


@contextmanager
def confined(limits: Limits, note: int | None = None, default: str = "") -> Iterator[None]:
    """Hold what runs within the block to these limits; each `step` of it to its time.

    Within another such block it does nothing.

    Args:
        note: file descriptor of `open_note`, where a parent looks for what this process was at.
        default: what that is where no step says; if empty, only steps can be at fault.

    Raises:
        ResourceLimit: no more memory could be had. Beyond the limits of time the process ends.
        ModelUnusable: a library of Rust's gave up.
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
        error.__traceback__ = None  # its frames hold what has taken the memory
        raise problem from None
    finally:
        for kind, before in lowered:
            resource.setrlimit(kind, before)
        confinement.end("")
        _current = None


@contextmanager
def step(what: str = "", size_bytes: int = 0) -> Iterator[None]:
    """Say what the block does, with the field that names it, and allow it its time; outside of `confined` nothing.

    A step within another one begins anew, and what is left of the outer one is not timed.

    Args:
        what: as before if empty.
        size_bytes: of what is read, which allows more time.
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


def check_room(what: str, size_bytes: int) -> None:
    """Refuse what is read whole and is longer than the memory for it; outside of `confined` nothing.

    Raises:
        ResourceLimit: naming it.
    """
    most = _current.limits.memory_bytes if _current else None
    if most is not None and size_bytes > most:
        raise ResourceLimit(_explain_memory(f"{what}, {size_bytes / 2**20:,.0f} MiB,", most))


def open_note() -> int:
    """A nameless file for the note of a child, which inherits it; in memory where that can be, as disks may be full."""
    if sys.platform == "linux":
        return os.memfd_create("note")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def is_reading(note: Path) -> bool:
    """Whether the process of this note is at what it is held to limits for. Raises OSError."""
    with note.open("rb") as file:
        return bool(file.read(NOTE_BYTES).strip())


def explain_end(code: int, note: int) -> ResourceLimit | None:
    """Why a child has ended with this code; None where that had nothing to do with its input.

    Args:
        code: as `subprocess` gives it, negative for a signal.
        note: the child's, of `open_note`.
    """
    content = os.pread(note, NOTE_BYTES, 0).rstrip()
    number = signal.SIGABRT if code == NO_THREAD_MEMORY else -code
    if number not in FATAL or not content:
        return None
    told = json.loads(content)
    if number == signal.SIGPROF:
        said = f"takes more than {told['seconds']:.3g} s of CPU time (TUNEYARD_INPUT_STEP_SECONDS)"
    elif number == signal.SIGXCPU:
        said = f"reading all takes more than {told['total_seconds']:g} s of CPU time (TUNEYARD_INPUT_SECONDS)"
    elif number == signal.SIGABRT:
        return ResourceLimit(_explain_memory(told["what"], told["memory_bytes"]))
    else:
        said = f"ends its process with {signal.Signals(number).name}"
    return ResourceLimit(f"{told['what']} {said}; {REMEDY}")


def _explain_error(error: BaseException, confinement: _Confinement) -> TuneyardError | None:
    """What the input is at fault for: memory that could not be had, or a panic of Rust's, which is not an Exception."""
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
    """Lower this process's limits, for as long as it wants to be held to them; which, and what they were."""
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
