import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import ParameterError
from retrieval.geo import Position, haversine_m
from retrieval.localize.evidence import FixSettings
from retrieval.localize.fix import FixStatus
from retrieval.tracking import Displacement, Distance, Odometry, PlaceMap, Speed, Track, TrackSettings
from tests.hypothesis_profiles import examples
from tests.retrieval.fixing import make_fix
from tests.retrieval.tracking.laid_out import line, local, matched, references

ORIGINS = [Position(0.0, 11.0), Position(-48.0, 180.0), Position(48.0, -179.99995), Position(90.0, 0.0)]


def drive(track: Track, rows: list[int], odometry: Odometry | None = None, start: float = 0.0, every: float = 1.0):
    fix = track.fix()
    for frame, row in enumerate(rows):
        fix = track.update(*matched((row, 0.8)), at=start + frame * every, odometry=odometry)
    return fix


def test_one_frame_says_what_the_frame_by_frame_fix_says() -> None:
    lat, lon = references([(0, 0), (10, 0), (20, 0), (300, 0), (310, 0)])
    rows, scores = matched((1, 0.80), (2, 0.79), (0, 0.79), (3, 0.78))
    fix = Track((lat, lon)).update(rows, scores, at=0.0)
    status, alone = make_fix(lat[rows], lon[rows], scores, FixSettings(score_scale=TrackSettings().score_scale))
    assert alone is not None
    assert fix.position is not None
    assert haversine_m(fix.position.lat, fix.position.lon, alone.position.lat, alone.position.lon) < 2.0
    assert (fix.status, fix.frames) == (status, 1) == (FixStatus.LOCATED, 1)
    # A single frame may be a miss, so it never claims the whole share.
    assert fix.confidence < alone.confidence


def test_frames_that_agree_with_the_motion_make_it_sure() -> None:
    track = Track(line(40))
    first = track.update(*matched((5, 0.8), (30, 0.8)), at=0.0)
    assert first.status is FixStatus.AMBIGUOUS
    fix, east = first, Speed(10.0, heading_deg=90.0)
    for step in range(1, 6):
        # Each frame looks like the right place and like one somewhere else.
        fix = track.update(*matched((5 + step, 0.8), ((step * 17) % 40, 0.8)), at=step, odometry=east)
    assert local(fix.position)[0] == pytest.approx(100.0, abs=6.0)
    assert fix.confidence > 0.9
    assert not fix.lost


def test_a_wrong_frame_does_not_move_a_sure_track() -> None:
    track, ahead = Track(line(60)), Displacement(10.0, 0.0)
    drive(track, [5, 6, 7, 8], ahead)
    fix = track.update(*matched((50, 0.8)), at=4.0, odometry=ahead)
    assert local(fix.position)[0] == pytest.approx(90.0, abs=8.0)


@pytest.mark.parametrize("odometry", [None, Speed(10.0), Displacement(10.0, 0.0), Distance(10.0, heading_deg=90.0)])
def test_a_kidnapped_camera_is_found_again(odometry: Odometry | None) -> None:
    track = Track(line(400), TrackSettings(max_speed_mps=15.0))
    drive(track, list(range(20, 30)), odometry)
    found = None
    for step in range(8):
        fix = track.update(*matched((300 + step, 0.8)), at=10.0 + step, odometry=odometry)
        if found is None and abs(local(fix.position)[0] - (3000 + 10 * step)) < 25:
            found = step
    assert found is not None
    assert 1 <= found <= 5
    assert fix.confidence > 0.8


def test_a_gap_widens_the_belief_and_a_long_one_ends_it() -> None:
    def after(seconds: float) -> tuple[float, float]:
        track = Track(line(1000))
        drive(track, [500, 501, 502])
        fix = track.update(np.empty(0, np.int64), np.empty(0), at=2.0 + seconds)
        assert fix.covariance_enu is not None or fix.status is FixStatus.NO_MATCH
        return (fix.radius_m or math.inf), fix.confidence

    radii, confidences = zip(*(after(seconds) for seconds in (0.0, 2.0, 10.0, 30.0, 3600.0)), strict=True)
    assert list(radii) == sorted(radii)
    assert list(confidences) == sorted(confidences, reverse=True)
    assert (radii[-1], confidences[-1]) == (math.inf, 0.0)


def test_frames_without_matches_are_bridged_by_odometry() -> None:
    track = Track(line(60))
    drive(track, [5, 6, 7, 8], Displacement(10.0, 0.0, 0.3))
    fix = track.fix()
    for step in range(5):
        fix = track.update(np.full(3, -1), np.full(3, -np.inf), at=4.0 + step, odometry=Displacement(10.0, 0.0, 0.3))
    assert local(fix.position)[0] == pytest.approx(130.0, abs=10.0)


def test_small_steps_add_up() -> None:
    """Half a metre at a time between places ten metres apart: without saving up, it would stay for ever."""
    track = Track(line(60))
    drive(track, [5, 6, 7, 8], Displacement(10.0, 0.0, 0.1))
    positions = []
    for step in range(60):
        fix = track.update(
            np.empty(0, np.int64), np.empty(0), at=3.1 + step / 10, odometry=Displacement(0.5, 0.0, 0.02)
        )
        positions.append(local(fix.position)[0])
    assert positions[0] == pytest.approx(80.5, abs=3.0)
    assert positions[-1] == pytest.approx(110.0, abs=8.0)
    assert max(np.abs(np.diff(positions))) < 8.0


def test_looking_at_the_same_picture_again_makes_nothing_sure() -> None:
    """A robot that stands and sees one look-alike ten times a second has not seen it a hundred times."""
    ten_hertz, once = Track(line(60)), Track(line(60))
    for track, every in ((ten_hertz, 0.1), (once, 1.0)):
        for step in range(round(2.0 / every) + 1):
            track.update(*matched((5, 0.8), (40, 0.795)), at=step * every, odometry=Speed(0.0, 0.0))
    assert ten_hertz.fix().status is once.fix().status is FixStatus.AMBIGUOUS


@pytest.mark.parametrize("origin", ORIGINS, ids=str)
def test_the_antimeridian_and_the_poles_are_nothing_special(origin: Position) -> None:
    """The same drive, straight across the origin."""
    way = [(0.0, 10.0 * n) for n in range(-20, 21)]
    track = Track(references(way, origin), TrackSettings(place_m=2.0))
    for step in range(30):
        fix = track.update(*matched((5 + step, 0.8), ((step * 23) % 41, 0.79)), at=step, odometry=Distance(10.0))
        if step > 3:
            assert math.dist(local(fix.position, origin), way[5 + step]) < 14.0
            assert fix.status is FixStatus.LOCATED


def test_displacement_is_east_and_north() -> None:
    """A cross of two streets: only the displacement says which arm was taken."""
    east, north = [(10.0 * n, 0.0) for n in range(8)], [(0.0, 10.0 * n) for n in range(1, 8)]
    for step, expected in (((10.0, 0.0), (40.0, 0.0)), ((0.0, 10.0), (0.0, 40.0))):
        track = Track(references(east + north))
        track.update(*matched((0, 0.8)), at=0.0)
        for frame in range(4):
            fix = track.update(np.empty(0, np.int64), np.empty(0), frame + 1.0, Displacement(*step, 0.3))
        assert math.dist(local(fix.position), expected) < 9.0
        assert fix.covariance_enu is not None


def test_the_covariance_is_one_and_the_radius_holds_the_belief() -> None:
    track = Track(line(60))
    fix = drive(track, [5, 6, 7, 8], Speed(10.0))
    assert fix.covariance_enu is not None
    assert fix.radius_m is not None
    covariance = np.array(fix.covariance_enu)
    assert np.linalg.eigvalsh(covariance).min() > 0
    assert covariance[0, 0] > covariance[1, 1], "uncertain along the street"
    assert fix.radius_m >= math.sqrt(np.trace(covariance) / 2) * math.sqrt(-2 * math.log(0.32)) - 1e-9
    lost = Track(line(60)).update(*matched((5, 0.8), (30, 0.8), (50, 0.8)), at=0.0)
    assert lost.radius_m is not None
    assert lost.radius_m > 200.0


def test_before_any_match_there_is_no_fix() -> None:
    fix = Track(line(5)).update(np.empty(0, np.int64), np.empty(0), at=1.0)
    assert (fix.status, fix.position, fix.covariance_enu, fix.radius_m) == (FixStatus.NO_MATCH, None, None, None)
    assert (fix.confidence, fix.lost, fix.frames) == (0.0, True, 1)


def test_a_frame_that_is_refused_changes_nothing() -> None:
    track = Track(line(20))
    before = drive(track, [3, 4, 5])
    rows, scores = matched((6, 0.8))
    refused = [
        (rows, scores, 1.0, "open a new track"),
        (rows, scores, math.nan, "no time"),
        (rows, np.array([np.nan]), 3.0, "finite"),
        (rows, np.array([np.inf]), 3.0, "finite"),
        (np.array([20]), scores, 3.0, "of 20"),
        (np.array([6.0]), scores, 3.0, "rows"),
        (rows, np.array([0.8, 0.7]), 3.0, "rows"),
    ]
    for bad_rows, bad_scores, at, words in refused:
        with pytest.raises(ParameterError, match=words):
            track.update(bad_rows, bad_scores, at=at)
    assert track.fix() == before
    assert track.update(rows, scores, at=2.0).frames == 4, "two cameras may see at one time"


def test_time_that_goes_back_has_its_own_code() -> None:
    track = Track(line(20))
    drive(track, [3, 4])
    with pytest.raises(ParameterError) as caught:
        track.update(*matched((5, 0.8)), at=0.5)
    assert caught.value.code == "frame_out_of_order"


def test_a_map_of_other_places_is_refused() -> None:
    with pytest.raises(ParameterError, match="place_m"):
        Track(PlaceMap(*line(5), 9.0), TrackSettings(place_m=5.0))


def test_tracks_share_a_map() -> None:
    places = PlaceMap(*line(20))
    one, other = Track(places), Track(places)
    drive(one, [3, 4, 5])
    assert other.fix().status is FixStatus.NO_MATCH
    assert one.places is other.places


def _grid(side: int) -> PlaceMap:
    """Places 10 m apart on a square, in degrees directly: a million take no time to lay out."""
    degrees = 10.0 / 111_194.93
    lat, lon = np.meshgrid(np.arange(side) * degrees, np.arange(side) * degrees, indexing="ij")
    return PlaceMap(lat.ravel(), lon.ravel())


@pytest.fixture(scope="module")
def million() -> PlaceMap:
    return _grid(1000)


def test_memory_is_bounded_over_a_million_references(million: PlaceMap) -> None:
    assert million.count == 1_000_000
    limited = TrackSettings(max_places=300, max_pairs=20_000)
    track = Track(million, limited)
    rng = np.random.default_rng(0)
    for frame in range(30):
        rows = rng.integers(0, million.count, 50)
        fix = track.update(rows, rng.uniform(0.7, 0.71, 50), at=frame * 2.0)
        assert len(track.belief.places) <= limited.max_places
        assert track.touched <= limited.max_pairs + limited.max_matches * 200
        assert 0.0 <= fix.confidence <= 1.0
        assert track.belief.weights.sum() + track.belief.lost == pytest.approx(1.0)


def test_work_does_not_grow_with_the_number_of_references(million: PlaceMap) -> None:
    """The same drive through the same corner of a small map and of one ten thousand times larger."""
    touched = []
    for places, side in ((_grid(40), 40), (million, 1000)):
        track = Track(places)
        counts = []
        for frame in range(12):
            track.update(*matched(((12 + frame) * side + 20, 0.8), (20 * side + 20, 0.79)), at=frame)
            counts.append(track.touched)
        touched.append(counts)
    small, large = (np.array(counts) for counts in touched)
    assert (large <= 1.5 * small + 50).all(), (small, large)


@settings(max_examples=examples(30))
@given(seed=st.integers(0, 2**32 - 1), gap=st.sampled_from([0.0, 0.05, 1.0, 20.0]))
def test_any_stream_gives_a_proper_belief(seed: int, gap: float) -> None:
    rng = np.random.default_rng(seed)
    track = Track(references([tuple(point) for point in rng.uniform(-200, 200, (80, 2))]))
    at = 0.0
    for _ in range(8):
        k = int(rng.integers(0, 6))
        rows, scores = rng.integers(-1, 80, k), rng.uniform(-1, 1, k)
        odometry = [None, Speed(float(rng.normal(0, 20))), Displacement(*rng.normal(0, 30, 2))][int(rng.integers(3))]
        fix = track.update(rows, scores, at, odometry)
        at += gap * float(rng.uniform(0, 2))
        assert track.belief.weights.sum() + track.belief.lost == pytest.approx(1.0)
        assert (track.belief.weights >= 0).all()
        assert 0.0 <= fix.confidence <= 1.0
        if fix.position is not None:
            assert fix.radius_m is not None
            assert math.isfinite(fix.radius_m)
            assert np.linalg.eigvalsh(np.array(fix.covariance_enu)).min() > 0


def test_settings_are_what_the_track_uses() -> None:
    doubtful = dataclasses.replace(TrackSettings(), jump_rate=1.0)
    sure, unsure = Track(line(20)), Track(line(20), doubtful)
    assert drive(sure, [3, 4, 5]).confidence > drive(unsure, [3, 4, 5]).confidence
