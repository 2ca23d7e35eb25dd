"""What was freed stays for the next step while a net trains, and goes back to the system on request."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from training.run.device import give_back_freed_memory

_MEBIBYTE = 1 << 20


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to give memory back")
def test_freed_memory_goes_back() -> None:
    # Below the size that malloc maps anew, and the last one kept: the heap cannot shrink from its end.
    blocks = [bytearray(b"x" * 65536) for _ in range(4096)]
    last = bytearray(b"x" * 65536)
    del blocks
    before = resident()
    give_back_freed_memory()
    assert before - resident() > 100 * _MEBIBYTE
    assert len(last) == 65536


# Another process, since the C library's settings are of the whole process.
_ALLOCATES_AGAIN = """
import resource
from retrieval.machine import keep_freed_memory
from training.run.device import give_back_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(b"x") * (256 << 20)
    del block
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

plain = [faults() for _ in range(2)][1]
keep_freed_memory()
kept = [faults() for _ in range(2)][1]
give_back_freed_memory()
print(plain, kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep memory")
def test_kept_memory_is_used_again_without_asking_the_system() -> None:
    ran = subprocess.run([sys.executable, "-c", _ALLOCATES_AGAIN], capture_output=True, text=True, check=True)
    plain, kept, given_back = map(int, ran.stdout.split())
    # 256 MiB: 65,536 pages of 4 KiB, or 128 of 2 MiB where the system uses huge ones.
    assert plain > 100
    assert kept < plain / 10
    assert given_back > 100
