"""What a process holds, from /proc: memory, threads, open files; and whether its memory grows."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import theilslopes

_BLOCKS = 24


@dataclass(frozen=True)
class Held:
    """What a process holds at one moment.

    Attributes:
        at: `time.monotonic`, seconds.
        resident_mb: resident memory, 10^6 bytes.
        threads: of the process.
        files: open file descriptors, sockets included.
    """

    at: float
    resident_mb: float
    threads: int
    files: int


@dataclass(frozen=True)
class Slope:
    """How fast something grows, an hour, with its 95 % interval (Theil and Sen; Kendall)."""

    per_hour: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.per_hour:+.1f} MB/hour (95 %: {self.low:+.1f} to {self.high:+.1f})"


def held_by(pid: int) -> Held:
    """What a process holds now."""
    folder = Path(f"/proc/{pid}")
    pages = int((folder / "statm").read_text().split()[1])
    threads = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("Threads:"))
    files = sum(1 for _ in (folder / "fd").iterdir())
    return Held(time.monotonic(), pages * 4096 / 1e6, int(threads.split()[1]), files)


def thread_names(pid: int) -> dict[str, int]:
    """How many threads of each name a process has; digits at the end of a name are left out."""
    names: dict[str, int] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name = (task / "comm").read_text().strip().rstrip("0123456789_-")
        names[name] = names.get(name, 0) + 1
    return dict(sorted(names.items()))


def memory_slope(samples: Sequence[Held]) -> Slope:
    """The slope of resident memory over blocks of time, whose means depend less on each other than single samples do.

    Args:
        samples: in order of time, at least three.
    """
    times = np.array([sample.at for sample in samples])
    memory = np.array([sample.resident_mb for sample in samples])
    blocks = [block for block in np.array_split(np.arange(len(samples)), min(_BLOCKS, len(samples))) if len(block)]
    hours = np.array([times[block].mean() for block in blocks]) / 3600.0
    means = np.array([memory[block].mean() for block in blocks])
    slope, _, low, high = theilslopes(means, hours)
    return Slope(float(slope), float(low), float(high))
