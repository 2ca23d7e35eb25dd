"""Memory that was freed, given back to the system.

The C library keeps what a training on the CPU has freed for allocations to come; one training after another leaves
gigabytes that no tensor holds.
"""

import ctypes
import gc
import sys


def give_back_freed_memory() -> None:
    """Collect what is unreachable and return free pages to the system, where the C library is glibc."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
