"""The town's ground seen from above: roads with markings, pavements, the park, and the shadows of the houses."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sightfix.toy_town.light import LIGHTS, Rgb
from sightfix.toy_town.plan import STREET_M, Block, Street
from sightfix.toy_town.randomness import generator
from sightfix.toy_town.renderer import Ground

_SCALE: Final = 8.0
_MARGIN_M: Final = 12.0
_ROAD_M: Final = 7.2
_SHADOW_OF_M: Final = 10.0

_OUTSIDE: Final = (112, 146, 84)
_ASPHALT: Final = (98, 98, 102)
_PAVEMENT: Final = (176, 170, 162)
_PAINT: Final = (232, 230, 222)
_LAWN: Final = (98, 150, 78)
_PATH: Final = (206, 190, 156)
_YARD: Final = (140, 150, 120)


class _Canvas:
    """A picture in metres, row 0 in the south."""

    def __init__(self, size_m: tuple[float, float]) -> None:
        width, height = (math.ceil((side + 2 * _MARGIN_M) * _SCALE) for side in size_m)
        self.colour = Image.new("RGB", (width, height), _OUTSIDE)
        self.houses = Image.new("L", (width, height))
        self._pen, self._house_pen = ImageDraw.Draw(self.colour), ImageDraw.Draw(self.houses)

    def box(self, west: float, south: float, east: float, north: float, colour: Rgb) -> None:
        self._pen.rectangle(self._pixels(west, south, east, north), fill=colour)

    def house(self, west: float, south: float, east: float, north: float) -> None:
        self._house_pen.rectangle(self._pixels(west, south, east, north), fill=255)

    def stripe(self, street: Street, along: tuple[float, float], across: tuple[float, float], colour: Rgb) -> None:
        """A rectangle in a street's own metres: along it from its start, and to its right."""
        corners = [street.at(distance, right) for distance in along for right in across]
        easts, norths = zip(*corners, strict=True)
        self.box(min(easts), min(norths), max(easts), max(norths), colour)

    def _pixels(self, west: float, south: float, east: float, north: float) -> tuple[int, int, int, int]:
        left, top, right, bottom = (round((side + _MARGIN_M) * _SCALE) for side in (west, south, east, north))
        return left, top, max(left, right - 1), max(top, bottom - 1)


def paint_ground(seed: int, blocks: Sequence[Block], streets: Sequence[Street], size_m: tuple[float, float]) -> Ground:
    """Paint the ground of a planned town.

    Args:
        seed: of the grain.
        blocks, streets, size_m: the plan.
    """
    canvas = _Canvas(size_m)
    canvas.box(0, 0, *size_m, _PAVEMENT)
    for street in streets:
        canvas.stripe(street, (0, street.length_m), (-_ROAD_M / 2, _ROAD_M / 2), _ASPHALT)
    for street in streets:
        _paint_markings(canvas, street, streets)
    for block in blocks:
        edges = (block.west, block.south, block.east, block.north)
        if block.park:
            east, north = (block.west + block.east) / 2, (block.south + block.north) / 2
            canvas.box(*edges, _LAWN)
            canvas.box(east - 1.2, block.south, east + 1.2, block.north, _PATH)
            canvas.box(block.west, north - 1.2, block.east, north + 1.2, _PATH)
        else:
            canvas.box(*edges, _YARD)
            canvas.house(*edges)
    texels = np.asarray(canvas.colour).astype(np.float32)
    texels += generator(seed, "ground").normal(0, 5, texels.shape[:2])[..., None]
    glow = np.zeros((*texels.shape[:2], 1))
    painted = np.concatenate([np.clip(texels, 0, 255), glow], axis=2).astype(np.uint8)
    return Ground(painted, _shadows(np.asarray(canvas.houses)), (-_MARGIN_M, -_MARGIN_M), _SCALE)


def _paint_markings(canvas: _Canvas, street: Street, streets: Sequence[Street]) -> None:
    """A dashed middle line, and a crossing before every crossroads."""
    northwards = street.start[0] == street.end[0]
    others = [other for other in streets if (other.start[0] == other.end[0]) != northwards]
    crossroads = sorted(other.start[1] if northwards else other.start[0] for other in others)
    for low, high in pairwise(crossroads):
        first, last = low + STREET_M / 2 + 0.5, high - STREET_M / 2 - 0.5
        for dash in np.arange(first + 4.0, last - 4.0, 4.5):
            canvas.stripe(street, (float(dash), float(dash) + 2.0), (-0.08, 0.08), _PAINT)
        for edge in (first, last - 2.6):
            for bar in np.arange(-3.2, 3.2, 1.0):
                canvas.stripe(street, (edge, edge + 2.6), (float(bar), float(bar) + 0.5), _PAINT)


def _shadows(houses: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Where houses, all taken as 10 m high, cast their shadows by day: (h, w) uint8, 255 in the shadow."""
    light = LIGHTS["day"]
    length = _SHADOW_OF_M / math.tan(math.radians(light.sun_elevation_deg)) * _SCALE
    azimuth = math.radians(light.sun_azimuth_deg)
    shadow = houses.copy()
    for step in np.arange(1.0, length, 2.0):
        east, north = -math.sin(azimuth) * step, -math.cos(azimuth) * step
        shadow = np.maximum(shadow, np.roll(houses, (round(north), round(east)), axis=(0, 1)))
    return shadow
