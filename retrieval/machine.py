"""What this machine gives this process: its cores and work on all of them, how exactly it sums bytes, and its heap.

Of the heap only glibc is asked. It gives threads arenas of their own, eight for each core, and keeps in each what was
freed there: with photos of many sizes decoded on many threads, that is a heap which grows for hours and never shrinks.
"""

import ctypes
import math
import os
import platform
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

# Items in work for each thread: enough that none waits for the slowest.
_AHEAD_PER_THREAD: Final = 4
Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# glibc's malloc.h.
_M_ARENA_MAX: Final = -8
_M_MMAP_MAX: Final = -4
_M_TRIM_THRESHOLD: Final = -1
_LARGEST: Final = 2**31 - 1
_OPERATORS: Final = ("MALLOC_ARENA_MAX", "glibc.malloc.arena_max")
_X86: Final = frozenset({"amd64", "i386", "i686", "x86_64"})
_VNNI: Final = frozenset({"avx512_vnni", "avx_vnni"})


@lru_cache(maxsize=1)
def available_cores() -> int:
    """Cores this process may use: the CPU affinity mask, cut by the cgroup quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


@lru_cache(maxsize=1)
def sums_bytes_exactly() -> bool:
    """Whether products of unsigned and signed bytes are summed in 32 bits: everywhere but on x86 without VNNI.

    Other x86 processors (Intel's servers before Cascade Lake, AMD's before Zen 4) sum two such products in 16 bits and
    clip what does not fit. Where that is unknown (no Linux), an x86 processor counts as one of those.
    """
    if platform.machine().lower() not in _X86:
        return True
    try:
        return not _VNNI.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False


def limit_arenas(count: int, environment: Mapping[str, str] | None = None) -> bool:
    """Let the heap be cut into no more than so many arenas; those that there are already stay.

    Args:
        count: at least 1.
        environment: variables, those of this process by default; an operator's own choice in them is left alone.

    Returns:
        whether that was done.
    """
    given = os.environ if environment is None else environment
    if _OPERATORS[0] in given or _OPERATORS[1] in given.get("GLIBC_TUNABLES", ""):
        return False
    mallopt = _of_glibc("mallopt")
    return mallopt is not None and bool(mallopt(_M_ARENA_MAX, count))


def keep_freed_memory() -> None:
    """Keep what is freed for allocations to come, for the whole process; `give_back_free_pages` still gives it back.

    By itself glibc takes every large array from the system and gives it back at once, and the system clears its pages
    again each time: in every step of a training, for example.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, _LARGEST)


def give_back_free_pages() -> None:
    """Return the pages in which nothing lives to the system. Takes the locks of the heap's arenas for a moment each."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def read_ahead(
    work: Callable[[Item], Outcome],
    items: Iterable[Item],
    *,
    threads: int | None = None,
    ahead: int | None = None,
    size: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Outcome]:
    """Do some work on many items in threads, with the outcomes in the order of the items.

    The threads have ended when the iterator is exhausted or closed, also by an error or Ctrl-C.

    Args:
        work: on one item; it should release Python's lock most of its time.
        items: taken as they are needed, by the caller's thread.
        threads: by default one for each core.
        ahead: items, or what `size` counts of them, that are in work or wait to be asked for; by default four for each
            thread. It bounds the memory: one item is allowed even if it is larger.
        size: of an item, at least 1.

    Yields:
        the outcome of each item; what the work raises is raised in its place.
    """
    threads = threads or available_cores()
    allowed = ahead if ahead is not None else threads * _AHEAD_PER_THREAD
    remaining = iter(items)
    waiting: deque[tuple[Future[Outcome], int]] = deque()
    held = 0
    with ThreadPoolExecutor(threads, "read") as pool:
        try:
            while True:
                while held < allowed:
                    try:
                        item = next(remaining)
                    except StopIteration:
                        break
                    count = size(item)
                    waiting.append((pool.submit(work, item), count))
                    held += count
                if not waiting:
                    return
                future, count = waiting.popleft()
                outcome = future.result()
                held -= count
                yield outcome
        finally:
            for future, _ in waiting:
                future.cancel()


def _cgroup_quota() -> float | None:
    """Cores' worth of CPU time that cgroup v2 or v1 grants, or None when unlimited or unknown."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        v1_quota = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").read_text())
        v1_period = int(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us").read_text())
        return v1_quota / v1_period if v1_quota > 0 and v1_period > 0 else None
    except (OSError, ValueError):
        return None


def _of_glibc(name: str) -> Any:
    """A function of glibc's; None where the C library is another one."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
