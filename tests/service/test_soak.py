"""A short soak with all its traffic, and proof that the long one would find a leak."""

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.serving.process_watch import Held
from benchmarks.serving.soak import Allowed, Soaked, faults, soak
from benchmarks.serving.traffic import Tally

QUIET = Held(at=0.0, resident_mb=400.0, threads=24, files=29)
# Too short for a slope, and for the last job worker to be gone: only a great leak shows. Answers are judged in full.
SHORT = Allowed(mb_per_hour=3000.0, grown_mb=150.0, threads=8, files=12)


@pytest.mark.parametrize(
    ("seconds", "warm_up_s", "swap_every_s", "quiet_s"),
    [(3.0, 2.0, 1.0, 1.0), pytest.param(8.0, 6.0, 2.0, 6.0, marks=pytest.mark.nightly)],
    ids=["short", "longer"],
)
def test_a_short_soak_finds_no_fault(
    tmp_path: Path, seconds: float, warm_up_s: float, swap_every_s: float, quiet_s: float
) -> None:
    soaked = soak(tmp_path, seconds, warm_up_s, swap_every_s, pause_s=0.2, quiet_s=quiet_s)
    assert faults(soaked, SHORT) == []
    kinds = {kind for kind, _ in soaked.tally.answers}
    assert {"good", "bad", "odd", "slow", "leaving", "batch", "gRPC", "gRPC stream", "activate"} <= kinds
    assert soaked.swaps >= 1
    assert soaked.tally.answers["good", "200"] >= 5


def samples(mb_per_hour: float, noise: float = 5.0) -> list[Held]:
    """Half an hour of them, a second apart, on a plateau that jumps up and down."""
    return [
        Held(float(second), 400.0 + mb_per_hour * second / 3600.0 + noise * ((second * 7919) % 13 - 6) / 6.0, 24, 29)
        for second in range(1800)
    ]


def soaked(mb_per_hour: float = 0.0, **changes: object) -> Soaked:
    after = {"at": 1800.0, "resident_mb": 400.0 + mb_per_hour / 2, "threads": 24, "files": 29, **changes}
    return Soaked(QUIET, Held(**after), samples(mb_per_hour))  # type: ignore[arg-type]


def test_a_plateau_is_no_leak() -> None:
    assert faults(soaked(), Allowed()) == []
    assert faults(soaked(10.0), Allowed()) == []
    assert abs(soaked().slope.per_hour) < 5.0


@pytest.mark.parametrize(
    ("found", "word"),
    [(soaked(100.0), "memory leaks"), (soaked(threads=40), "threads leak"), (soaked(files=60), "files leak")],
)
def test_a_leak_is_found(found: Soaked, word: str) -> None:
    (fault,) = faults(found, Allowed())
    assert word in fault


def test_the_slope_is_within_its_interval() -> None:
    slope = soaked(100.0).slope
    assert slope.low <= slope.per_hour <= slope.high
    assert slope.low > 80.0
    assert slope.high < 120.0


def test_wrong_answers_are_faults() -> None:
    tally = Tally()
    tally.note("good", "200", frozenset({"200"}))
    tally.note("good", "500", frozenset({"200"}), "internal_error")
    tally.note("good", "500", frozenset({"200"}), "another")
    assert tally.answers == Counter({("good", "200"): 1, ("good", "500"): 2})
    found = soaked()
    found.tally, found.inside, found.tracebacks = tally, 2, 1
    assert faults(found, Allowed()) == [
        "good got 500, 2 times: internal_error",
        "2 photos are still inside",
        "1 tracebacks in the log",
    ]
