"""How the C library keeps memory that tensors have let go."""

import ctypes

LARGE_BYTES = 2**20  # of a block that is mapped by itself
SPARE_BYTES = 2**26  # that the heap keeps at its end for smaller blocks; given back and taken again they cost time
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h


def return_large_blocks() -> bool:
    """Have glibc map every block of LARGE_BYTES and more by itself, and unmap it when it is freed, in this process.

    By default blocks of up to 32 MB come to share a heap once one such was freed. Torch's tensors are aligned, so a
    gap does not take another tensor of the same size, and where layers are computed again and again the heap holds
    several times what is alive. Mapped pages have to be cleared anew, which costs time.

    Returns whether the C library has this setting.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
        return bool(set_option(M_MMAP_THRESHOLD, LARGE_BYTES) and set_option(M_TRIM_THRESHOLD, SPARE_BYTES))
    except (AttributeError, OSError, TypeError):  # another C library
        return False
