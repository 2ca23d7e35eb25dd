import os
import subprocess
import sys

import pytest

from retrieval import machine
from retrieval.machine import available_cores


def test_at_least_one_core_and_no_more_than_the_affinity_mask() -> None:
    assert 1 <= available_cores() <= len(os.sched_getaffinity(0))


def test_a_process_bound_to_one_core_has_one() -> None:
    script = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    script += "from retrieval.machine import available_cores; print(available_cores())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(("quota", "cores"), [(None, 8), (0.5, 1), (1.0, 1), (1.5, 2), (3.0, 3), (64.0, 8)])
def test_a_container_quota_is_rounded_up(quota: float | None, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: quota)
    assert available_cores.__wrapped__() == cores
