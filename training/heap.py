"""What the C library does with memory that was freed: kept while a net trains on the CPU, given back afterwards.

By itself glibc takes every large tensor from the system and gives it back in each step, and the system has to clear
its pages again. What is kept instead would stay after one training for the next: gigabytes that no tensor holds.
"""

import ctypes
import gc
import sys
from collections.abc import Callable
from typing import Final

# glibc's malloc.h: above how many free bytes the heap's end shrinks, and how many blocks may be mapped each for itself.
_TRIM_THRESHOLD: Final = -1
_MMAP_MAX: Final = -4
_LARGEST: Final = 2**31 - 1


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for allocations to come, where it is glibc; for the whole process.

    `give_back_freed_memory` still gives it back.
    """
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, _LARGEST)


def give_back_freed_memory() -> None:
    """Collect what is unreachable and return free pages to the system, where the C library is glibc."""
    gc.collect()
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library, or None where it has none of that name, as musl."""
    if sys.platform != "linux":
        return None
    return getattr(ctypes.CDLL(None), name, None)
