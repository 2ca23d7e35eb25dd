import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from retrieval import machine
from retrieval.machine import available_cores, sums_bytes_exactly


def test_at_least_one_core_and_no_more_than_the_affinity_mask() -> None:
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


def test_a_process_bound_to_one_core_has_one() -> None:
    script = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    script += "from retrieval.machine import available_cores, sums_bytes_exactly; print(available_cores())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.5, 1), (1.0, 1), (1.5, 2), (3.0, 3), (64.0, 8)])
def test_a_container_quota_is_rounded_up(quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: quota)
    assert available_cores.__wrapped__() == cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "1 1000000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "0\n", "cpu/cpu.cfs_period_us": "0\n"}, 8),
        ({"cpu.max": "nonsense"}, 8),
        ({}, 8),
    ],
)
def test_whatever_the_cgroup_says_there_is_at_least_one_core(
    files: dict[str, str], cores: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "Path", lambda name: tmp_path / name.removeprefix("/sys/fs/cgroup/"))
    assert available_cores.__wrapped__() == cores


@pytest.mark.parametrize(
    ("architecture", "flags", "exact"),
    [
        ("x86_64", "sse4_1 avx avx2 fma", False),
        ("x86_64", "avx2 avx512f avx512bw", False),
        ("x86_64", "avx2 avx512f avx512_4vnniw", False),
        ("x86_64", "avx2 avx512f avx512_vnni", True),
        ("x86_64", "avx2 avx_vnni", True),
        ("AMD64", None, False),
        ("aarch64", "asimd", True),
        ("arm64", None, True),
    ],
)
def test_sums_of_bytes(architecture: str, flags: str | None, exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_text(path: Path) -> str:
        assert str(path) == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError(path)
        return f"processor\t: 0\nflags\t\t: fpu {flags} x2apic\n"

    monkeypatch.setattr(platform, "machine", lambda: architecture)
    monkeypatch.setattr(Path, "read_text", read_text)
    assert sums_bytes_exactly.__wrapped__() is exact
