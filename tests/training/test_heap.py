"""What was freed goes back to the system, and not to the C library's store."""

import os
import platform
from pathlib import Path

import pytest

from training.heap import give_back_freed_memory

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
