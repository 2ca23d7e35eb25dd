import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.tracking import Displacement, Distance, Odometry, Speed, Track, TrackSettings
from retrieval.tracking.belief import Belief
from tests.hypothesis_profiles import examples
from tests.retrieval.tracking.laid_out import line, matched, references
from tests.retrieval.tracking.slow_filter import dense, likeness_of, observed, predicted

# Matches speak for their own place only, and every bit of a frame counts: what paper can follow.
PAPER = TrackSettings(match_std_m=0.5, miss_share=0.25, contrast=1e9, jump_rate=0.0, evidence_s=0.0, evidence_m=0.0)


def test_three_places_on_a_line_by_hand() -> None:
    """Places 0, 10 and 20 m to the east; their spacing is 20 m (median of 20, 10, 20 to the second nearest)."""
    track = Track(line(3), PAPER)
    assert track.places.spacing_m == pytest.approx(20.0)

    # The first frame matches the middle: L = (1/4, 1/4 + 9/4, 1/4) and a uniform prior give (1, 10, 1) / 12.
    track.update(*matched((1, 0.8)), at=0.0)
    assert track.belief.places.tolist() == [1]
    np.testing.assert_allclose(track.belief.weights + track.belief.lost / 3, [10 / 12])
    assert track.belief.lost == pytest.approx(0.25)

    # Ten metres to the east, variance 20²/6 for where one stands in a place: exp(-20² / 2 / 66.7) = exp(-3) back,
    # exp(-3/4) for staying, 1 for the next place. Then the frame matches the last place.
    track.update(*matched((2, 0.8)), at=1.0, odometry=Displacement(10.0, 0.0, 0.0))
    leaves = np.array([math.exp(-3.0), math.exp(-0.75), 1.0])
    moved = 0.75 * leaves / leaves.sum()
    expected = moved * [0.25, 0.25, 2.5] + [0.0, 0.0, 0.25 * 0.75]
    lost = 0.25 * 0.25
    total = expected.sum() + lost
    np.testing.assert_allclose(track.belief.weights, expected / total, rtol=1e-6)
    assert track.belief.lost == pytest.approx(lost / total)


def test_on_a_ring_of_places_it_is_the_textbook_filter() -> None:
    """Where all places are alike, lost is the uniform distribution exactly: a plain hidden Markov model must agree."""
    angles = np.arange(12) * 2 * np.pi / 12
    ring = references([(40.0 * math.cos(a), 40.0 * math.sin(a)) for a in angles])
    settings = TrackSettings(
        contrast=1e9, jump_rate=0.05, match_std_m=12.0, evidence_s=0.0, evidence_m=0.0, speed_mps=12.0
    )
    track = Track(ring, settings)
    places = track.places
    rows = np.array([predicted([float(p == q) for q in range(12)], places, 1.0, None, settings) for p in range(12)])
    transition = rows + (1.0 - rows.sum(axis=1, keepdims=True)) / 12
    belief = np.full(12, 1 / 12)
    rng = np.random.default_rng(5)
    for frame in range(20):
        matches = [(int(row), float(rng.uniform(0.7, 0.8))) for row in rng.choice(12, 3, replace=False)]
        track.update(*matched(*matches), at=float(frame))
        likeness = np.array(likeness_of([m[0] for m in matches], [m[1] for m in matches], places, settings))
        likelihood = settings.miss_share + (1 - settings.miss_share) * 12 * likeness / likeness.sum()
        belief = likelihood * (belief @ transition if frame else belief)
        belief /= belief.sum()
        held = dense(track.belief.places, track.belief.weights, 12) + track.belief.lost / 12
        np.testing.assert_allclose(held, belief, atol=1e-5)


@settings(max_examples=examples(40))
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 14),
    contrast=st.sampled_from([2.0, 10.0, 1e9]),
    form=st.sampled_from(["none", "speed", "distance", "displacement"]),
)
def test_it_agrees_with_a_dense_filter_written_in_loops(seed: int, count: int, contrast: float, form: str) -> None:
    rng = np.random.default_rng(seed)
    track_settings = TrackSettings(
        contrast=contrast, jump_rate=0.03, speed_mps=1000 / 3, max_speed_mps=400.0, max_reach_m=1e5, evidence_m=0.0
    )
    if form == "none":
        track_settings = TrackSettings(contrast=contrast, jump_rate=0.03, speed_mps=40.0, max_speed_mps=41.0)
    track = Track(references([tuple(point) for point in rng.uniform(0, 60, (count, 2))]), track_settings)
    places, weights = track.places, [0.0] * track.places.count
    for frame in range(5):
        seconds = float(rng.uniform(1.0, 2.0)) if frame else 0.0
        odometry = _odometry(form, rng, places.spacing_m, seconds) if frame else None
        matches = [(int(row), float(rng.uniform(0.6, 0.7))) for row in rng.integers(0, count, 4)]
        track.update(*matched(*matches), at=(track._at or 0.0) + seconds, odometry=odometry)
        if frame:
            weights = predicted(weights, places, seconds, odometry, track_settings)
        weights = observed(
            weights,
            likeness_of([m[0] for m in matches], [m[1] for m in matches], places, track_settings),
            track_settings,
        )
        np.testing.assert_allclose(
            dense(track.belief.places, track.belief.weights, places.count), weights, atol=2e-6 * (frame + 1)
        )
        assert track.belief.weights.sum() + track.belief.lost == pytest.approx(1.0)


def _odometry(form: str, rng: np.random.Generator, spacing_m: float, seconds: float) -> Odometry | None:
    # Long enough that no step is saved up.
    metres = float(rng.uniform(0.6, 1.5)) * spacing_m
    if form == "speed":
        return Speed(metres / seconds, float(rng.uniform(0.0, 2.0)))
    if form == "distance":
        return Distance(metres, float(rng.uniform(0.0, 3.0)))
    if form == "displacement":
        angle = float(rng.uniform(0, 2 * math.pi))
        return Displacement(metres * math.cos(angle), metres * math.sin(angle), float(rng.uniform(0.0, 3.0)))
    return None


def test_the_lightest_places_go_to_lost() -> None:
    belief = Belief(np.arange(5), np.array([0.1, 0.3, 0.05, 0.2, 1e-9]), 0.35 - 1e-9)
    kept = belief.kept(2)
    assert kept.places.tolist() == [1, 3]
    assert kept.lost == pytest.approx(0.5)
    assert belief.kept(10).places.tolist() == [0, 1, 2, 3]
