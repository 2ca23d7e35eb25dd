"""A belief that goes over to another map; frames without matches; odometry that no robot has."""

import numpy as np
import pytest

from retrieval.errors import ParameterError
from retrieval.tracking import Displacement, Distance, PlaceMap, Speed, Track, TrackSettings
from retrieval.tracking.belief import Belief, carry
from tests.retrieval.tracking.laid_out import line, local, matched, references


def test_the_nearest_place_is_found_as_by_looking_at_all() -> None:
    rng = np.random.default_rng(3)
    places = PlaceMap(*references(rng.uniform(0.0, 400.0, (200, 2)).tolist()))
    asked = rng.uniform(-30.0, 430.0, (300, 2))
    found = places.nearest(*references(asked.tolist()), within_m=20.0)
    there = np.array([local_of(places, place) for place in range(places.count)])
    away = np.hypot(*(asked[:, None] - there[None]).transpose(2, 0, 1))
    expected = np.where(away.min(axis=1) <= 20.0, away.argmin(axis=1), -1)
    assert 50 < (expected >= 0).sum() < 300
    np.testing.assert_array_equal(found, expected)


def local_of(places: PlaceMap, place: int) -> tuple[float, float]:
    from retrieval.geo import Position

    return local(Position(float(places.lat[place]), float(places.lon[place])))


def test_a_belief_goes_to_the_nearest_places_and_the_rest_is_lost() -> None:
    """Of three places one stays, one moves by 4 m, and one is gone."""
    before = PlaceMap(*references([(0.0, 0.0), (100.0, 0.0), (300.0, 0.0)]))
    after = PlaceMap(*references([(0.0, 0.0), (104.0, 0.0), (500.0, 0.0), (510.0, 0.0)]))
    east = [local_of(before, place)[0] for place in range(3)]
    order = np.argsort(east)
    weights = np.zeros(3)
    weights[order] = [0.5, 0.2, 0.1]
    carried = carry(Belief(np.arange(3), weights, 0.2), before, after)
    held = {round(local_of(after, int(place))[0]): weight for place, weight in zip(*parts(carried), strict=True)}
    assert held == pytest.approx({0: 0.5, 104: 0.2})
    assert carried.lost == pytest.approx(0.3)


def parts(belief: Belief) -> tuple[np.ndarray, np.ndarray]:
    return belief.places, belief.weights


def test_a_track_over_a_larger_map_goes_on_as_if_nothing_had_happened() -> None:
    small, large = PlaceMap(*line(30)), PlaceMap(*line(60))
    moved, stayed = Track(small), Track(large)
    for at in range(4):
        rows, scores = matched((10 + at, 0.8), (11 + at, 0.78))
        moved.update(rows, scores, float(at))
        stayed.update(rows, scores, float(at))
    moved.carry_to(large)
    before, after = stayed.fix(), moved.fix()
    assert before.position is not None
    assert local(after.position)[0] == pytest.approx(local(before.position)[0], abs=0.1)
    assert after.confidence == pytest.approx(before.confidence, abs=0.02)
    assert (after.frames, after.lost) == (4, False)
    rows, scores = matched((14, 0.8))
    assert moved.update(rows, scores, 4.0).confidence > 0.8


def test_a_track_over_a_map_of_elsewhere_is_lost_and_starts_anew() -> None:
    track = Track(PlaceMap(*line(30)))
    rows, scores = matched((10, 0.8))
    track.update(rows, scores, 0.0)
    lat, lon = line(30)
    track.carry_to(PlaceMap(lat + 1.0, lon))
    fix = track.fix()
    assert (fix.position, fix.lost, fix.frames) == (None, True, 1)
    assert track.update(rows, scores, 1.0).position is not None
    with pytest.raises(ParameterError, match="does not fit"):
        track.carry_to(PlaceMap(lat, lon, 7.0))


def test_frames_without_matches_do_not_use_up_what_the_next_is_worth() -> None:
    """One frame a second counts in full, whether or not five that failed came between."""
    settings = TrackSettings(jump_rate=0.0)
    confidences = []
    for between in (0, 5):
        track = Track(PlaceMap(*line(40)), settings)
        rows, scores = matched((10, 0.8), (30, 0.8))
        track.update(rows, scores, 0.0)
        for number in range(1, between + 1):
            track.update(np.empty(0, np.int64), np.empty(0), number / (between + 1))
        rows, scores = matched((10, 0.8))
        confidences.append(track.update(rows, scores, 1.0).confidence)
    assert confidences[1] == pytest.approx(confidences[0], abs=0.03)


def test_the_first_frame_with_matches_counts_in_full() -> None:
    rows, scores = matched((10, 0.8))
    straight, late = Track(PlaceMap(*line(40))), Track(PlaceMap(*line(40)))
    late.update(np.empty(0, np.int64), np.empty(0), 0.99)
    assert late.update(rows, scores, 1.0).confidence == pytest.approx(straight.update(rows, scores, 1.0).confidence)


@pytest.mark.parametrize("make", [Speed, Distance])
def test_odometry_that_no_robot_has_is_refused(make: type[Speed]) -> None:
    with pytest.raises(ParameterError, match="odometry"):
        make(1e300)
    with pytest.raises(ParameterError, match="standard deviation"):
        make(1.0, 1e200)
    with pytest.raises(ParameterError, match="odometry"):
        Displacement(0.0, -1e300)
