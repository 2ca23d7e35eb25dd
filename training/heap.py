"""Memory that was freed, given back to the system.

The C library keeps what a training on the CPU has freed for allocations to come; one training after another leaves
gigabytes that no tensor holds.
"""

import gc

from retrieval.machine import give_back_free_pages


def give_back_freed_memory() -> None:
    """Collect what is unreachable and return free pages to the system, where the C library is glibc."""
    gc.collect()
    give_back_free_pages()
