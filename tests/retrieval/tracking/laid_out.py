"""Reference positions laid out in metres."""

from collections.abc import Sequence

import numpy as np

from retrieval.geo import Position, from_local_metres, to_local_metres

EQUATOR = Position(0.0, 11.0)


def references(east_north: Sequence[tuple[float, float]], origin: Position = EQUATOR) -> tuple[np.ndarray, np.ndarray]:
    """(lat, lon) of points some metres east and north of an origin."""
    positions = [from_local_metres(origin, east, north) for east, north in east_north]
    return np.array([p.lat for p in positions]), np.array([p.lon for p in positions])


def line(count: int, step_m: float = 10.0, origin: Position = EQUATOR) -> tuple[np.ndarray, np.ndarray]:
    """Points on a line to the east, starting at the origin."""
    return references([(step_m * n, 0.0) for n in range(count)], origin)


def local(position: Position | None, origin: Position = EQUATOR) -> tuple[float, float]:
    """A position in metres east and north of an origin."""
    assert position is not None
    (east_north,) = to_local_metres(origin, [position.lat], [position.lon])
    return float(east_north[0]), float(east_north[1])


def matched(*pairs: tuple[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of a frame's matches."""
    return np.array([row for row, _ in pairs], np.int64), np.array([score for _, score in pairs])
