"""The plan of the town: an irregular grid of streets, blocks between them, one a park; and its ground from above."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sightfix.toy_town.drawing import Rgb
from sightfix.toy_town.rendering import LIGHTS, Ground

LANE_M: Final = 1.8
"""The middle of the lane, so far right of the middle of the street."""
STREET_M: Final = 12.0
_ROAD_M: Final = 7.2
_GROUND_SCALE: Final = 8.0
_MARGIN_M: Final = 12.0
_SHADOW_OF_M: Final = 10.0
_OUTSIDE: Final = (112, 146, 84)
_ASPHALT: Final = (98, 98, 102)
_PAVEMENT: Final = (176, 170, 162)
_PAINT: Final = (232, 230, 222)
_LAWN: Final = (98, 150, 78)
_PATH: Final = (206, 190, 156)
_YARD: Final = (140, 150, 120)


def generator(seed: int, *purpose: int | str) -> np.random.Generator:
    """Random numbers for one purpose of one town, the same in every process and in any order of calls.

    Args:
        seed: the town's seed, not negative.
        purpose: words and non-negative numbers, for example ``("facade", 17)``.
    """
    words = [part if isinstance(part, int) else zlib.crc32(part.encode()) for part in purpose]
    return np.random.default_rng([seed, *words])


@dataclass(frozen=True, slots=True)
class Block:
    """A block between streets: its rectangle in metres from the town's origin, and whether it is the park."""

    west: float
    south: float
    east: float
    north: float
    park: bool


@dataclass(frozen=True, slots=True)
class Street:
    """A straight street: its centre line from start to end, metres east and north."""

    start: tuple[float, float]
    end: tuple[float, float]

    @property
    def length_m(self) -> float:
        """Its length."""
        return math.dist(self.start, self.end)

    def at(self, along_m: float, right_m: float = 0.0) -> tuple[float, float]:
        """The point so far along it and so far to its right."""
        ux, uy = ((b - a) / self.length_m for a, b in zip(self.start, self.end, strict=True))
        return self.start[0] + ux * along_m + uy * right_m, self.start[1] + uy * along_m - ux * right_m

    @property
    def heading_deg(self) -> float:
        """Its direction, clockwise from north."""
        return math.degrees(math.atan2(self.end[0] - self.start[0], self.end[1] - self.start[1])) % 360.0


def plan_town(seed: int, columns: int, rows: int) -> tuple[list[Block], list[Street], tuple[float, float]]:
    """The blocks, the streets (northward ones first) and the size (metres east, north) of a town."""
    rng = generator(seed, "plan")
    widths, heights = rng.uniform(46, 74, columns), rng.uniform(40, 62, rows)
    # Each street lies west or south of its block; one more closes the last column and the last row.
    wests, souths = (np.concatenate([[0.0], np.cumsum(sides + STREET_M)]) for sides in (widths, heights))
    size = (float(wests[-1] + STREET_M), float(souths[-1] + STREET_M))
    park = int(rng.integers(columns * rows)) if columns * rows > 2 else -1
    blocks = [
        Block(
            float(wests[column] + STREET_M),
            float(souths[row] + STREET_M),
            float(wests[column + 1]),
            float(souths[row + 1]),
            row * columns + column == park,
        )
        for row in range(rows)
        for column in range(columns)
    ]
    easts, norths = (wests + STREET_M / 2).tolist(), (souths + STREET_M / 2).tolist()
    streets = [Street((east, 0.0), (east, size[1])) for east in easts]
    streets += [Street((0.0, north), (size[0], north)) for north in norths]
    return blocks, streets, size


def paint_ground(seed: int, blocks: Sequence[Block], streets: Sequence[Street], size_m: tuple[float, float]) -> Ground:
    """Paint roads with markings, pavements, the park, and the shadows of the houses.

    Args:
        seed: of the grain.
        blocks, streets, size_m: the plan.
    """
    width, height = (math.ceil((side + 2 * _MARGIN_M) * _GROUND_SCALE) for side in size_m)
    picture, houses = Image.new("RGB", (width, height), _OUTSIDE), Image.new("1", (width, height))
    pen, house_pen = ImageDraw.Draw(picture), ImageDraw.Draw(houses)
    _box(pen, (0, 0, *size_m), _PAVEMENT)
    for street in streets:
        _stripe(pen, street, (0, street.length_m), (-_ROAD_M / 2, _ROAD_M / 2), _ASPHALT)
    for street in streets:
        _paint_markings(pen, street, streets)
    for block in blocks:
        edges = (block.west, block.south, block.east, block.north)
        _box(pen, edges, _LAWN if block.park else _YARD)
        if block.park:
            east, north = (block.west + block.east) / 2, (block.south + block.north) / 2
            _box(pen, (east - 1.2, block.south, east + 1.2, block.north), _PATH)
            _box(pen, (block.west, north - 1.2, block.east, north + 1.2), _PATH)
        else:
            _box(house_pen, edges, 1)
    grain = generator(seed, "ground").normal(0, 5, (height, width, 1)).astype(np.float32)
    colour = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
    return Ground(colour, _shadows(np.asarray(houses)), (-_MARGIN_M, -_MARGIN_M), _GROUND_SCALE)


def _box(pen: ImageDraw.ImageDraw, edges: tuple[float, float, float, float], ink: Rgb | int) -> None:
    """A rectangle given by west, south, east and north, metres; row 0 lies in the south."""
    left, top, right, bottom = (round((side + _MARGIN_M) * _GROUND_SCALE) for side in edges)
    pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), fill=ink)


def _stripe(
    pen: ImageDraw.ImageDraw, street: Street, along: tuple[float, float], across: tuple[float, float], ink: Rgb
) -> None:
    """A rectangle in a street's own metres: along it from its start, and to its right."""
    easts, norths = zip(*(street.at(distance, right) for distance in along for right in across), strict=True)
    _box(pen, (min(easts), min(norths), max(easts), max(norths)), ink)


def _paint_markings(pen: ImageDraw.ImageDraw, street: Street, streets: Sequence[Street]) -> None:
    """A dashed middle line, and a crossing before every crossroads."""
    northwards = street.start[0] == street.end[0]
    others = [other for other in streets if (other.start[0] == other.end[0]) != northwards]
    crossroads = sorted(other.start[1] if northwards else other.start[0] for other in others)
    for low, high in pairwise(crossroads):
        first, last = low + STREET_M / 2 + 0.5, high - STREET_M / 2 - 0.5
        for dash in np.arange(first + 4.0, last - 4.0, 4.5):
            _stripe(pen, street, (dash, dash + 2.0), (-0.08, 0.08), _PAINT)
        for edge in (first, last - 2.6):
            for bar in np.arange(-3.2, 3.2, 1.0):
                _stripe(pen, street, (edge, edge + 2.6), (bar, bar + 0.5), _PAINT)


def _shadows(houses: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Where houses, all taken as 10 m high, cast their shadows by day: (h, w) bool."""
    light = LIGHTS["day"]
    length = _SHADOW_OF_M / math.tan(math.radians(light.sun_elevation_deg)) * _GROUND_SCALE
    azimuth = math.radians(light.sun_azimuth_deg)
    shadow = houses.copy()
    for step in np.arange(1.0, length, 2.0):
        east, north = -math.sin(azimuth) * step, -math.cos(azimuth) * step
        shadow |= np.roll(houses, (round(north), round(east)), axis=(0, 1))
    return shadow
