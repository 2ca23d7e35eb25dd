"""One track of a server: what it says of being lost, and what it keeps in memory."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest

from retrieval.describer import Describer
from retrieval.errors import ParameterError
from retrieval.index.folder import find_index
from retrieval.index.place_index import PlaceIndex
from retrieval.localize.localizer import LocalizeOptions, Localizer, Located
from retrieval.tracking import Displacement, Distance, Speed, TrackSettings
from service.tracking.model import TrackParameters
from service.tracking.tracks import FrameMotion, LiveTrack, MotionParameters, PlaceMaps
from tests.conftest import PublishedPlaces


@pytest.fixture(scope="module")
def localizer(published: PublishedPlaces, describer: Describer) -> Localizer:
    return Localizer(describer, PlaceIndex.open(find_index(published.indexes, None)))


@pytest.fixture(scope="module")
def located(localizer: Localizer, published: PublishedPlaces) -> Callable[[int], Located]:
    def of(number: int) -> Located:
        return localizer.localize_file(published.places.rows[number].path, LocalizeOptions(min_ranked=12))

    return of


def test_being_lost_and_found_is_told(localizer: Localizer, located: Callable[[int], Located]) -> None:
    maps = PlaceMaps(5.0)
    index = localizer.place_index
    track = LiveTrack(TrackSettings(), maps.of(index), index.version)

    def step(at_s: float, seen: int | None) -> tuple[bool, bool, bool]:
        answer = track.step(FrameMotion(at_s), None if seen is None else located(seen), maps)
        return answer.lost, answer.relocalized, answer.matched

    assert step(0.0, None) == (True, False, False)
    # The first place is not one that was lost before.
    assert step(1.0, 3) == (False, False, True)
    assert step(2.0, 3) == (False, False, True)
    # More than 500 m could have been covered.
    assert step(100.0, None) == (True, False, False)
    assert step(101.0, 9) == (False, True, True)
    assert step(102.0, 9) == (False, False, True)
    # The same within one step.
    assert step(300.0, 5) == (False, True, True)


def test_a_frame_that_is_too_old_changes_nothing(localizer: Localizer, located: Callable[[int], Located]) -> None:
    maps = PlaceMaps(5.0)
    track = LiveTrack(TrackSettings(), maps.of(localizer.place_index), localizer.place_index.version)
    first = track.step(FrameMotion(10.0), located(3), maps)
    with pytest.raises(ParameterError) as refused:
        track.step(FrameMotion(9.0), located(4), maps)
    assert refused.value.code == "frame_out_of_order"
    again = track.step(FrameMotion(10.0), None, maps)
    assert (again.fix, again.frames) == (first.fix, 2)


def test_matches_weigh_in_units_of_the_spread(localizer: Localizer, located: Callable[[int], Located]) -> None:
    """Where scores lie ten times as far apart, a lead of the best match counts less."""
    maps, index = PlaceMaps(5.0), localizer.place_index
    frame = located(3)
    stretched = replace(frame, ranking=replace(frame.ranking, cosines=frame.ranking.cosines / 10.0))
    fixes = []
    for seen in (frame, stretched):
        track = LiveTrack(TrackSettings(), maps.of(index), index.version)
        fixes.append(track.step(FrameMotion(0.0), seen, maps).fix)
    assert fixes[0] is not None
    assert fixes[1] is not None
    assert fixes[1].confidence < fixes[0].confidence - 0.1


def test_a_map_is_made_once_and_goes_with_its_version(published: PublishedPlaces) -> None:
    maps = PlaceMaps(5.0)
    index = PlaceIndex.open(find_index(published.indexes, None))
    places = maps.of(index)
    assert maps.of(index) is places
    track = LiveTrack(TrackSettings(), places, index.version)
    version = weakref.ref(index)
    del index
    gc.collect()
    assert version() is None
    assert track.step(FrameMotion(0.0), None, maps).frames == 1


@pytest.mark.parametrize(
    ("values", "odometry"),
    [
        ({}, None),
        ({"speed_mps": -2.0}, Speed(-2.0)),
        ({"speed_mps": 2.0, "speed_std_mps": 0.1, "heading_deg": 90.0}, Speed(2.0, 0.1, 90.0)),
        ({"distance_m": 2.0, "heading_deg": 9.0, "heading_std_deg": 1.0}, Distance(2.0, 0.5, 9.0, 1.0)),
        ({"east_m": 1.0, "north_m": 0.0, "displacement_std_m": 0.2}, Displacement(1.0, 0.0, 0.2)),
    ],
)
def test_parameters_become_odometry(values: dict[str, float], odometry: object) -> None:
    assert MotionParameters(captured_at_s=4.5, **values).motion() == FrameMotion(4.5, odometry)  # type: ignore[arg-type]


def test_one_speed_gives_the_other() -> None:
    def speeds(**values: float) -> tuple[float, float]:
        made = TrackParameters(**values).settings(5.0)
        return made.speed_mps, made.max_speed_mps

    assert speeds() == (5.0, 15.0)
    assert speeds(max_speed_mps=3.0) == (1.0, 3.0)
    assert speeds(speed_mps=2.0) == (2.0, 6.0)
    assert speeds(speed_mps=60.0) == (60.0, 100.0)
    assert speeds(speed_mps=2.0, max_speed_mps=2.0) == (2.0, 2.0)
