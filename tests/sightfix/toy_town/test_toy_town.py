"""The toy town: the same numbers, the same pixels; geometry that can be worked out on paper."""

import math

import numpy as np
import pytest

from retrieval.errors import ParameterError
from retrieval.geo import haversine_m, to_local_metres
from sightfix.toy_town import ORIGIN, Camera, ToyTown, plan_queries, plan_references, town_for
from sightfix.toy_town.drawing import Sheet
from sightfix.toy_town.plan import STREET_M
from sightfix.toy_town.rendering import Atlas, Ground, Scene, Walls, light_named, render

SIZE = (160, 120)


@pytest.fixture(scope="module")
def town() -> ToyTown:
    return ToyTown(seed=0, columns=2, rows=2)


def wall_scene(*walls: tuple[tuple[float, float], tuple[float, float], tuple[int, int, int], float]) -> Scene:
    """Walls of plain colours: (start, end, colour, height in metres) on a green plain."""
    sheets = [Sheet(math.dist(start, end), height, 20.0) for start, end, _, height in walls]
    for sheet, (start, end, colour, height) in zip(sheets, walls, strict=True):
        sheet.box(0, 0, math.dist(start, end), height, colour)
    ground = Ground(np.full((4, 4, 3), (60, 120, 60), np.uint8), np.zeros((4, 4), bool), (-100.0, -100.0), 0.02)
    surfaces = Walls(
        np.array([wall[0] for wall in walls], np.float64),
        np.array([wall[1] for wall in walls], np.float64),
        np.arange(len(walls)),
        np.ones(len(walls), bool),
    )
    return Scene(surfaces, Atlas.of(sheets), ground, light_named("day"))


def reddish(image: np.ndarray) -> np.ndarray:
    return (image[..., 0].astype(int) - image[..., 1]) > 40


def bluish(image: np.ndarray) -> np.ndarray:
    return (image[..., 2].astype(int) - image[..., 0]) > 40


def test_a_wall_falls_on_the_pixels_worked_out_on_paper() -> None:
    # 90° of view over 160 px: the focal length is 80 px. A wall 10 m ahead, 4 m to either side, 3 m high, seen from
    # 1.5 m: columns 80 ± 32, rows 60 ± 12.
    scene = wall_scene(((-4.0, 10.0), (4.0, 10.0), (220, 40, 40), 3.0))
    image = render(scene, Camera(0.0, 0.0, 1.5, 0.0, fov_deg=90.0), SIZE)
    rows, columns = np.nonzero(reddish(image))
    assert abs(columns.min() - 48) <= 1
    assert abs(columns.max() - 111) <= 1
    assert abs(rows.min() - 48) <= 1
    assert abs(rows.max() - 71) <= 1


def test_projection_agrees_with_the_picture_when_pitched_and_rolled() -> None:
    scene = wall_scene(((-4.0, 10.0), (4.0, 10.0), (220, 40, 40), 3.0))
    camera = Camera(0.0, 0.0, 1.5, 0.0, pitch_deg=5.0, roll_deg=3.0, fov_deg=90.0)
    # Right, up and forward of the eye.
    wall = np.array([(-4, -1.5, 10), (4, -1.5, 10), (4, 1.5, 10), (-4, 1.5, 10)], float)
    pixels = wall @ np.linalg.inv(camera.rays(SIZE)).T
    corners = pixels[:, :2] / pixels[:, 2:]
    middle = corners.mean(axis=0).round().astype(int)
    seen = reddish(render(scene, camera, SIZE))
    rows, columns = np.nonzero(seen)
    assert seen[middle[1], middle[0]]
    assert abs(columns.min() - corners[:, 0].min()) <= 2
    assert abs(columns.max() - corners[:, 0].max()) <= 2
    assert abs(rows.min() - corners[:, 1].min()) <= 2
    assert abs(rows.max() - corners[:, 1].max()) <= 2


def test_what_is_near_hides_what_is_behind() -> None:
    far = ((-6.0, 12.0), (6.0, 12.0), (40, 60, 220), 6.0)
    near = ((-2.0, 5.0), (2.0, 5.0), (220, 40, 40), 1.2)
    camera = Camera(0.0, 0.0, 1.5, 0.0, fov_deg=90.0)
    alone, both = render(wall_scene(far), camera, SIZE), render(wall_scene(near, far), camera, SIZE)
    hidden = bluish(alone) & reddish(both)
    assert hidden.sum() > 200
    # The low one in front leaves the upper part of the tall one in sight.
    assert bluish(both)[:60].sum() == bluish(alone)[:60].sum() > 500


def test_a_wall_is_not_seen_from_behind() -> None:
    scene = wall_scene(((4.0, 10.0), (-4.0, 10.0), (220, 40, 40), 3.0))
    assert not reddish(render(scene, Camera(0.0, 0.0, 1.5, 0.0, fov_deg=90.0), SIZE)).any()


def test_the_same_seed_gives_the_same_pixels_and_another_seed_another_town() -> None:
    town = ToyTown(0, 1, 1)
    camera = Camera(*town.streets[1].at(30.0, 1.8), heading_deg=20.0)
    first = town.photograph(camera, SIZE, "day", moment=7)
    np.testing.assert_array_equal(first, ToyTown(0, 1, 1).photograph(camera, SIZE, "day", moment=7))
    other = ToyTown(1, 1, 1).photograph(camera, SIZE, "day", moment=7)
    assert np.abs(first.astype(int) - other).mean() > 10
    assert (first != town.photograph(camera, SIZE, "day", moment=8)).any(), "another moment, other cars and noise"


def test_dusk_is_darker_and_warmer_than_day_and_windows_are_lit(town: ToyTown) -> None:
    cameras = [Camera(*street.at(40.0, 1.8), heading_deg=street.heading_deg) for street in town.streets]
    day, dusk = (
        np.stack([town.photograph(camera, SIZE, light, 3) for camera in cameras]).astype(float)
        for light in ("day", "dusk")
    )
    assert dusk.mean() < 0.75 * day.mean()
    assert dusk[..., 0].mean() / dusk[..., 2].mean() > day[..., 0].mean() / day[..., 2].mean()
    assert dusk.max() > 200


def test_the_plan_has_streets_around_every_block(town: ToyTown) -> None:
    assert len(town.blocks) == 4
    assert len(town.streets) == 6
    for block in town.blocks:
        assert block.west >= STREET_M
        assert block.east <= town.size_m[0] - STREET_M + 1e-9
    assert sum(block.park for block in town.blocks) == 1


def test_positions_are_metres_from_the_origin(town: ToyTown) -> None:
    position = town.position(30.0, 40.0)
    assert haversine_m(ORIGIN.lat, ORIGIN.lon, position.lat, position.lon) == pytest.approx(50.0, abs=1e-3)
    assert to_local_metres(ORIGIN, [position.lat], [position.lon])[0] == pytest.approx([30.0, 40.0], abs=1e-3)


@pytest.mark.parametrize("count", [1, 20, 300, 1000])
def test_a_survey_has_at_least_the_photos_asked_for_and_a_town_with_room_for_them(count: int) -> None:
    town = town_for(count)
    photos = plan_references(town, count)
    assert count <= len(photos) <= count * 1.4 + 30
    assert len({photo.path for photo in photos}) == len(photos)


def test_queries_stand_elsewhere_at_day_and_dusk(town: ToyTown) -> None:
    queries, references = plan_queries(town, 60), plan_references(town, 300)
    assert {query.light for query in queries} == {"day", "dusk"}
    lat, lon = (np.array([getattr(photo.position, name) for photo in references]) for name in ("lat", "lon"))
    nearest = [float(haversine_m(query.position.lat, query.position.lon, lat, lon).min()) for query in queries]
    assert min(nearest) > 0.5, "no query stands where a reference was taken"
    assert max(nearest) < 25.0, "every query has a reference within 25 m"
    assert {photo.moment for photo in queries}.isdisjoint({photo.moment for photo in references})


def test_a_large_town_can_be_planned_quickly() -> None:
    assert len(plan_queries(ToyTown(0, 3, 3), 2000)) == 2000


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ToyTown(-1), "the toy town's seed -1 is negative. Give 0 or more."),
        (lambda: ToyTown(0, 0, 1), "a toy town of 0 × 1 blocks cannot be built. Give 1 to 60 each."),
        (lambda: light_named("noon"), "the toy town has no light 'noon'. Choose one of day, dusk."),
        (lambda: plan_queries(ToyTown(0, 1, 1), 0), "a survey of 0 photos is none. Ask for 1 or more."),
        (lambda: Camera(0, 0, fov_deg=170), "fov_deg 170 of the toy town's camera is outside [20, 110]."),
    ],
)
def test_impossible_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(ParameterError) as error:
        make()
    assert str(error.value) == message
