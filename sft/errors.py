"""The one error tree: every error a user can cause or fix, each with its HTTP status and a stable code.

Here are its root and what a training can raise; a service adds its own (`jobs.errors`).

A message names the field, the value and the remedy. Each class is also a standard error type, takes the
message as its only argument and so survives pickling (Prefect pickles what a flow raises).
"""

import re
from collections.abc import Iterator

# By name and message: comparing classes would import torch in processes that do without it.
_MEMORY_ERRORS = {"torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError", "builtins.MemoryError"}
_MEMORY_WORDS = (
    "defaultcpuallocator: ",  # torch on a CPU: "can't allocate memory" or "not enough memory: you tried to allocate"
    "you tried to allocate",
    "out of memory",  # "CUDA error: out of memory", "CUDA out of memory", NCCL's, HIP's
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cusparse_status_alloc_failed",
    "cannot allocate memory",  # the operating system's, for a thread or a mapping
)

# Of GPUs and drivers that are busy, reset or lost, as opposed to errors of the program that runs on them.
_DEVICE_WORDS = (
    "busy or unavailable",  # another process holds the device
    "no cuda-capable device is detected",
    "no cuda gpus are available",
    "cuda driver initialization failed",
    "cuda unknown error",
    "cuda error: unknown error",
    "system not yet initialized",  # the fabric manager of NVLink switches is starting
    "driver/library version mismatch",
    "uncorrectable ecc error",
    "uncorrectable nvlink error",
    "mps server",
    "mps control daemon",
    "nccl communicator was aborted",
    "gloo/transport",  # a process at the other end of a connection has gone
)
_COLLECTIVE_ERRORS = {
    f"torch.distributed.{name}" for name in ("DistBackendError", "DistNetworkError", "DistStoreError")
}
_MISUSE_WORDS = ("invalid usage", "invalid argument")  # NCCL's for what would fail again


class TuneyardError(Exception):
    """Base of the tree. `status` is the HTTP status of the API's response, `code` a stable machine-readable name.

    `is_worth_retrying`: the cause may be temporary, so a job that raised it gets another attempt. `param` names the
    wrong parameter of a request, if it is known.
    """

    status: int = 500
    code: str = "internal_error"
    is_worth_retrying: bool = False
    param: str | None = None


class InvalidConfig(TuneyardError, ValueError):
    """A value in a job's configuration is not valid."""

    status = 400
    code = "invalid_config"


class ModelNotFound(TuneyardError, LookupError):
    """A base model or the adapter in adapter_path was not found."""

    status = 404
    code = "model_not_found"


class ModelNotSupported(TuneyardError, ValueError):
    """A base model that can be read, but not trained as a causal language model on rows of text."""

    status = 400
    code = "model_not_supported"


class ModelUnusable(ModelNotFound):
    """A base model or the adapter in adapter_path exists, but its files can't be read, trained or saved here."""

    status = 400
    code = "model_unusable"


class DatasetNotFound(TuneyardError, LookupError):
    """A dataset or a revision of it was not found."""

    status = 404
    code = "dataset_not_found"


class InvalidDataset(TuneyardError, ValueError):
    """Rows that can't be read or have no supervised tokens."""

    status = 400
    code = "invalid_dataset"


class ResourceLimit(TuneyardError, RuntimeError):
    """A file of rows, a tokenizer or a chat template that takes more time or memory to read than is allowed."""

    status = 400
    code = "resource_limit"


class InvalidPrompt(TuneyardError, ValueError):
    """A prompt that the model's tokenizer or chat template can't write. The message begins with the parameter."""

    status = 400
    code = "invalid_prompt"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        parameter = re.match(r"(messages|prompt|tools)(\[[0-9]+\])?", message)
        self.param = parameter[0] if parameter else None


class TemplateNotFound(TuneyardError, LookupError):
    """An unknown chat template, or one that needs tokens the tokenizer lacks."""

    status = 400
    code = "template_not_found"


class DeviceNotFound(TuneyardError, LookupError):
    """A device to plan for that is in no table."""

    status = 404
    code = "device_not_found"


class TrainingDiverged(TuneyardError, ArithmeticError):
    """Training can't continue: loss or gradients have left the range in which the model learns."""

    code = "training_diverged"


class LossNotFinite(TrainingDiverged):
    """The loss or its gradient became NaN or infinite."""

    code = "loss_not_finite"


class LossExploded(TrainingDiverged):
    """The loss stayed far above its first values."""

    code = "loss_exploded"


class NothingLearned(TuneyardError, ArithmeticError):
    """Training left the weights unchanged, so there is no result to keep."""

    code = "nothing_learned"


class DiskFull(TuneyardError, OSError):
    """The disk that a job writes to is full, or has too little space for it."""

    status = 507
    code = "disk_full"


class MergeFailed(TuneyardError, RuntimeError):
    """An adapter can't be merged into its base model here; the adapter itself is there."""

    code = "merge_failed"


class ResultUnusable(TuneyardError, RuntimeError):
    """What a job has saved can't be loaded again, so it is not registered."""

    code = "result_unusable"


class ExportRefused(TuneyardError, ValueError):
    """An adapter can't be brought into the form of another program."""

    status = 400
    code = "export_refused"


class DeviceUnavailable(TuneyardError, RuntimeError):
    """A GPU is busy, lost or faulty, or the processes of a job on several devices have lost each other."""

    status = 503
    code = "device_unavailable"
    is_worth_retrying = True


class CheckpointUnusable(TuneyardError, RuntimeError):
    """A required checkpoint is damaged, or contains pickled objects, which are not loaded."""

    code = "checkpoint_unusable"


class StackError(TuneyardError, RuntimeError):
    """A part of the local stack did not start or can't be reached."""

    status = 503
    code = "stack_unavailable"
    is_worth_retrying = True


def find_error(code: str) -> type[TuneyardError]:
    """The error class of a code, to re-raise an error of another process; TuneyardError if unknown."""
    left: list[type[TuneyardError]] = [TuneyardError]
    while left:
        kind = left.pop()
        if kind.code == code:
            return kind
        left += kind.__subclasses__()
    return TuneyardError


def walk_causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error, the members of exception groups, and each one's causes and contexts, outermost first."""
    left, seen = [error], set[int]()
    while left:
        current = left.pop(0)
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            left += current.exceptions
        left += [current.__cause__, None if current.__suppress_context__ else current.__context__]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error, of any library, says that memory has run out."""
    if {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__} & _MEMORY_ERRORS:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in _MEMORY_WORDS)


def is_device_failure(error: BaseException) -> bool:
    """Whether this error says that a device or the connection between a job's processes failed."""
    text = str(error).lower()
    if {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__} & _COLLECTIVE_ERRORS:
        return not any(words in text for words in _MISUSE_WORDS)
    return isinstance(error, RuntimeError) and any(words in text for words in _DEVICE_WORDS)


def is_of_machine(error: BaseException) -> bool:
    """Whether the error comes from a lack of memory or a failed device, whatever was tried: not from a value."""
    return any(is_out_of_memory(one) or is_device_failure(one) for one in walk_causes(error))
