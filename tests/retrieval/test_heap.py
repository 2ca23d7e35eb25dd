"""The heap has no more arenas than it may, and an operator's own choice stands."""

import os
import platform
import subprocess
import sys

import pytest

from retrieval.machine import limit_arenas

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has arenas")

# glibc puts each arena but the first into maps that begin at multiples of 64 MiB.
_COUNT_ARENAS = """
import ctypes, threading
from retrieval.machine import limit_arenas
print(limit_arenas(2))
ready = threading.Barrier(13)
def hold():
    block = ctypes.CDLL(None).malloc(100_000)
    ready.wait()
    ready.wait()
threads = [threading.Thread(target=hold) for _ in range(12)]
for thread in threads: thread.start()
ready.wait()
starts = [int(line.split("-")[0], 16) for line in open("/proc/self/maps") if line.split()[-1].startswith("0")]
print(sum(start % (64 << 20) == 0 for start in starts))
ready.wait()
"""


def arenas(**environment: str) -> tuple[bool, int]:
    plain = {name: value for name, value in os.environ.items() if name not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")}
    told = subprocess.run(
        [sys.executable, "-c", _COUNT_ARENAS], env={**plain, **environment}, capture_output=True, text=True, check=True
    ).stdout.split()
    return told[0] == "True", int(told[1])


def test_threads_share_two_arenas() -> None:
    done, count = arenas()
    assert done
    assert count <= 1, "beside the main one, which lies in [heap]"


@pytest.mark.parametrize(
    "environment",
    [{"MALLOC_ARENA_MAX": "9"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=9"}],
    ids=["variable", "tunable"],
)
def test_an_operators_choice_stands(environment: dict[str, str]) -> None:
    assert not limit_arenas(2, environment)
    done, count = arenas(**environment)
    assert not done
    assert count > 1
