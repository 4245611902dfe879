"""Errors that say that memory has run out, by whatever library.

They are known by their names: comparing with the classes would load torch in processes that never met it.
"""

_NAMES = {"torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError", "builtins.MemoryError"}
_WORDS = (
    "defaultcpuallocator: ",  # torch on a CPU: "can't allocate memory" or "not enough memory: you tried to allocate"
    "you tried to allocate",
    "out of memory",  # "CUDA error: out of memory", "CUDA out of memory", NCCL's, HIP's
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cusparse_status_alloc_failed",
    "cannot allocate memory",  # the system's own, of a thread or a mapping
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error, whatever it came from, says so."""
    if {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__} & _NAMES:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in _WORDS)
