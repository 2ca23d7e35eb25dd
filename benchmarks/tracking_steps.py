"""What a track costs a server for each frame, by how many references there are and how much it knows."""

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe_machine
from retrieval.geo import Float64Array, Position, from_local_metres
from retrieval.tracking import Odometry, PlaceMap, Speed, Track
from service.tracking.model import TrackParameters

COUNTS: Final = (1_000, 100_000, 1_000_000)
FRAMES: Final = 300
_PHOTO_EVERY_M: Final = 5.0
_STREET_EVERY_M: Final = 100.0
_MATCHES: Final = 20
_ORIGIN: Final = Position(48.0, 11.0)


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of camera.

    Attributes:
        name: for the table.
        parameters: as a client may send them.
        wild: whether its matches lie anywhere, so that the track never knows; else they are the photos around it.
        odometry: of each frame.
    """

    name: str
    parameters: TrackParameters
    wild: bool
    odometry: Odometry | None


CASES: Final = (
    Case("follows a street, speed known", TrackParameters(), wild=False, odometry=Speed(4.0)),
    Case("never knows where it is", TrackParameters(), wild=True, odometry=None),
    Case(
        "the dearest that a client can ask for",
        TrackParameters(speed_mps=33.0, max_speed_mps=100.0, match_std_m=50.0),
        wild=True,
        odometry=None,
    ),
)


def main() -> None:
    """Print a Markdown table."""
    print(f"steps of a track, one frame a second, one thread; {describe_machine()}\n")
    print("| references | map, ms (once a version) | camera | median ms | p99 ms | most places read |")
    print("|---|---|---|---|---|---|")
    for count in COUNTS:
        lat, lon = streets(count)
        begun = time.perf_counter()
        places = PlaceMap(lat, lon, 5.0)
        map_ms = (time.perf_counter() - begun) * 1e3
        for case in CASES:
            milliseconds, touched = _steps(case, places, lat, lon)
            median, p99 = np.quantile(milliseconds, [0.5, 0.99])
            print(f"| {count:,} | {map_ms:.0f} | {case.name} | {median:.1f} | {p99:.1f} | {touched:,} |")


def streets(count: int) -> tuple[Float64Array, Float64Array]:
    """A square town: a street every 100 m in both directions, a photo every 5 m, in no order."""
    side = float(np.sqrt(count * _PHOTO_EVERY_M * _STREET_EVERY_M / 2.0)) + _STREET_EVERY_M
    along = np.arange(0.0, side, _PHOTO_EVERY_M)
    across = np.repeat(np.arange(0.0, side, _STREET_EVERY_M), len(along))
    along = np.tile(along, len(across) // len(along))
    points = np.concatenate([np.stack([across, along], axis=1), np.stack([along, across], axis=1)])
    points = np.random.default_rng(0).permutation(points)[:count]
    # Small enough to be flat: what matters is how many lie within some metres.
    north = from_local_metres(_ORIGIN, 0.0, 1000.0).lat - _ORIGIN.lat
    east = from_local_metres(_ORIGIN, 1000.0, 0.0).lon - _ORIGIN.lon
    return _ORIGIN.lat + points[:, 1] * north / 1e3, _ORIGIN.lon + points[:, 0] * east / 1e3


def _steps(case: Case, places: PlaceMap, lat: Float64Array, lon: Float64Array) -> tuple[list[float], int]:
    rng = np.random.default_rng(1)
    track = Track(places, case.parameters.settings(places.place_m))
    milliseconds, touched = [], 0
    for frame in range(FRAMES):
        rows, scores = _matches(case, frame, lat, lon, rng)
        begun = time.perf_counter()
        track.update(rows, scores, float(frame), case.odometry)
        milliseconds.append((time.perf_counter() - begun) * 1e3)
        touched = max(touched, track.touched)
    return milliseconds, touched


def _matches(
    case: Case, frame: int, lat: Float64Array, lon: Float64Array, rng: np.random.Generator
) -> tuple[NDArray[np.int64], Float64Array]:
    if case.wild:
        return rng.integers(0, len(lat), _MATCHES), rng.uniform(0.68, 0.70, _MATCHES)
    # Northwards at 4 m/s along the street in the west, back and forth.
    metres = 4.0 * frame % 200.0
    here = from_local_metres(_ORIGIN, 0.0, metres)
    nearest = (lat - here.lat) ** 2 + ((lon - here.lon) * np.cos(np.radians(here.lat))) ** 2
    return np.argpartition(nearest, _MATCHES)[:_MATCHES], rng.uniform(0.60, 0.70, _MATCHES)


if __name__ == "__main__":
    main()
