"""Recognizes out-of-memory errors of any library.

They are compared by name and message: comparing classes would import torch in processes that do without it.
"""

_NAMES = {"torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError", "builtins.MemoryError"}
_WORDS = (
    "defaultcpuallocator: ",  # torch on a CPU: "can't allocate memory" or "not enough memory: you tried to allocate"
    "you tried to allocate",
    "out of memory",  # "CUDA error: out of memory", "CUDA out of memory", NCCL's, HIP's
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cusparse_status_alloc_failed",
    "cannot allocate memory",  # the operating system's, for a thread or a mapping
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this error says that memory has run out."""
    if {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__} & _NAMES:
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError | OSError) and any(words in text for words in _WORDS)
