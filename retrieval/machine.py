"""What this machine gives this process: cores by affinity and container quota, and how exactly it sums bytes."""

import math
import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import Final

_X86: Final = frozenset({"amd64", "i386", "i686", "x86_64"})
_VNNI: Final = frozenset({"avx512_vnni", "avx_vnni"})


@lru_cache(maxsize=1)
def available_cores() -> int:
    """Cores this process may use: the CPU affinity mask, cut by the cgroup quota, at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, affinity if quota is None else min(affinity, math.ceil(quota)))


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


@lru_cache(maxsize=1)
def sums_bytes_exactly() -> bool:
    """Whether products of unsigned and signed bytes are summed in 32 bits: everywhere but on x86 without VNNI.

    Other x86 processors (Intel's servers before Cascade Lake, AMD's before Zen 4) sum two such products in 16 bits and
    clip what does not fit. Where nobody tells (no Linux), an x86 processor counts as one of those.
    """
    if platform.machine().lower() not in _X86:
        return True
    try:
        return not _VNNI.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
