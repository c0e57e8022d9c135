"""How a process that moves much data through memory holds on to it."""

from __future__ import annotations

import ctypes

_TRIM, _MMAP = -1, -3  #: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
KEPT = 64 * 2**20  #: bytes at the end of the heap that are not given back
LARGEST = 32 * 2**20  #: bytes of the largest block that comes out of the heap; glibc allows no more


def keep_freed() -> bool:
    """Have the memory of blocks that are freed used again, for the whole process; says whether that could be arranged.

    Left alone, glibc gives the memory of every large block back at once, and the kernel clears and maps each of its
    pages anew for the next one, which costs more than reading what goes into it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_MMAP, LARGEST)) and bool(mallopt(_TRIM, KEPT))
