"""The town: blocks of houses along streets, a park, trees and lamps, and the cars that pass."""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError
from retrieval.geo import Position, from_local_metres
from sightfix.toy_town.camera import Camera, Float64Array
from sightfix.toy_town.drawing import Sheet, shade
from sightfix.toy_town.houses import draw_facade, draw_side, random_house
from sightfix.toy_town.plan import LANE_M, Street, generator, paint_ground, plan_town
from sightfix.toy_town.rendering import Atlas, Ground, Scene, Walls, light_named, render

# Point Nemo, the place in the ocean farthest from any land, so that the toy town is not mistaken for a real one.
ORIGIN: Final = Position(-48.876667, -123.393333)
_SCALE: Final = 12.0
_HOUSE_DEPTH_M: Final = 9.0
_TREES: Final = 5
_CARS: Final = 10
_CAR_M: Final = (4.3, 1.8, 1.55)
_CAR_PAINTS: Final = (
    (190, 40, 40), (40, 80, 160), (230, 230, 226), (40, 42, 46), (150, 156, 160),
    (220, 170, 40), (60, 120, 80), (120, 60, 40), (90, 150, 190), (240, 130, 60),
)  # fmt: skip
_CAR_GLASS: Final = (66, 84, 98)
_IRON: Final = (44, 50, 52)


_Wall = tuple[Float64Array, Float64Array, int]
"""Start and end, and the sheet."""


@dataclass(frozen=True, slots=True)
class _Sprite:
    """An object that looks the same from all directions: a tree or a lamp."""

    east: float
    north: float
    sheet: int
    width_m: float


@dataclass(frozen=True, slots=True)
class _Drawing:
    """What is drawn once for all photos; a car has four sheets."""

    walls: Walls
    sprites: list[_Sprite]
    cars: list[list[int]]
    atlas: Atlas
    ground: Ground


class ToyTown:
    """A small town drawn from numbers: the same seed and size give the same pixels.

    Its houses are drawn with the first photo.

    Args:
        seed: not negative; another seed is another town.
        columns, rows: of blocks, 1 to 60 each.

    Attributes:
        blocks, streets, size_m: its plan.
        origin: position of metre (0, 0), its south-western corner, on the Earth.

    Raises:
        ParameterError: a negative seed, or no or too many blocks.
    """

    def __init__(self, seed: int = 0, columns: int = 3, rows: int = 2) -> None:
        if seed < 0:
            raise ParameterError(f"the toy town's seed {seed} is negative", remedy="Give 0 or more")
        if not (1 <= columns <= 60 and 1 <= rows <= 60):
            raise ParameterError(f"a toy town of {columns} × {rows} blocks cannot be built", remedy="Give 1 to 60 each")
        self.seed, self.columns, self.rows = seed, columns, rows
        self.origin = ORIGIN
        self.blocks, self.streets, self.size_m = plan_town(seed, columns, rows)
        self._drawing: _Drawing | None = None
        self._lock = threading.Lock()

    def position(self, east: float, north: float) -> Position:
        """The position on the Earth of a point of the town."""
        return from_local_metres(self.origin, east, north)

    def photograph(
        self, camera: Camera, size: tuple[int, int] = (320, 240), light: str = "day", moment: int = 0
    ) -> NDArray[np.uint8]:
        """Take a photo.

        Args:
            camera: position and direction of view.
            size: width and height in pixels.
            light: ``day`` or ``dusk``.
            moment: decides the cars that pass, the exposure and the noise; the same moment, the same photo.

        Returns:
            (height, width, 3) uint8 RGB.

        Raises:
            ParameterError: no such light.
        """
        lit = light_named(light)
        with self._lock:
            drawing = self._drawing = self._drawing or self._draw()
        rng = generator(self.seed, "moment", moment)
        walls = Walls.joined(drawing.walls, _facing(camera, drawing.sprites), self._traffic(camera, drawing.cars, rng))
        frame = render(Scene(walls, drawing.atlas, drawing.ground, lit), camera, size)
        exposure = rng.normal(1.0, 0.05)
        noise = rng.normal(0.0, lit.noise, (*frame.shape[:2], 1))
        return np.asarray(np.clip(frame * exposure + noise, 0, 255), np.uint8)

    def _draw(self) -> _Drawing:
        sheets: list[Sheet] = []
        walls: list[_Wall] = []
        for number, block in enumerate(self.blocks):
            if not block.park:
                west, south, east, north = block.west, block.south, block.east, block.north
                corners = [(west, south), (east, south), (east, north), (west, north)]
                self._build_rows(number, corners, sheets, walls)
        # Houses on the outer side of the outermost streets: no view out of the town.
        width, height = self.size_m
        self._build_rows(9999, [(0.0, 0.0), (0.0, height), (width, height), (width, 0.0)], sheets, walls)
        sprites = self._furnish(sheets)
        cars = []
        for number in range(_CARS):
            cars.append(list(range(len(sheets), len(sheets) + 4)))
            sheets += _car_sheets(_CAR_PAINTS[number])
        ground = paint_ground(self.seed, self.blocks, self.streets, self.size_m)
        return _Drawing(_walls(walls), sprites, cars, Atlas.of(sheets), ground)

    def _build_rows(
        self, number: int, corners: list[tuple[float, float]], sheets: list[Sheet], walls: list[_Wall]
    ) -> None:
        """Four rows of houses; from the street, each row begins left."""
        for side in range(4):
            origin, end = np.array(corners[side]), np.array(corners[(side + 1) % 4])
            length = math.dist(origin, end)
            along = (end - origin) / length
            depth = np.array([-along[1], along[0]]) * _HOUSE_DEPTH_M
            rng = generator(self.seed, "row", number, side)
            houses = max(2, round(length / rng.uniform(8.5, 12.5)))
            cuts = np.concatenate([[0.0], np.cumsum(rng.uniform(0.7, 1.3, houses))])
            cuts *= length / cuts[-1]
            for place in range(houses):
                house = random_house(rng)
                left, right = origin + along * cuts[place], origin + along * cuts[place + 1]
                facade, flank = len(sheets), len(sheets) + 1
                sheets.append(draw_facade(house, float(cuts[place + 1] - cuts[place]), _SCALE, rng))
                sheets.append(draw_side(house, _HOUSE_DEPTH_M, _SCALE / 2, rng))
                walls.append((left, right, facade))
                # Sides and back show above lower neighbours. At a corner the side would lie in the next row's façades.
                if place < houses - 1:
                    walls.append((right, right + depth, flank))
                if place > 0:
                    walls.append((left + depth, left, flank))
                walls.append((right + depth, left + depth, flank))

    def _furnish(self, sheets: list[Sheet]) -> list[_Sprite]:
        rng = generator(self.seed, "furniture")
        first = len(sheets)
        sheets += [*(_tree_sheet(rng) for _ in range(_TREES)), _lamp_sheet()]
        kinds = [(number, sheets[number].width_m) for number in range(first, len(sheets))]
        trees, lamp = kinds[:-1], kinds[-1]
        sprites = []
        for street in self.streets:
            for along in np.arange(9.0, street.length_m - 6.0, 20.0):
                side = 5.2 if rng.random() < 0.5 else -5.2
                sheet, width = lamp if rng.random() < 0.5 else trees[int(rng.integers(_TREES))]
                sprites.append(_Sprite(*street.at(float(along + rng.uniform(-3, 3)), side), sheet, width))
        for block in self.blocks:
            for _ in range(26 if block.park else 0):
                sheet, width = trees[int(rng.integers(_TREES))]
                east, north = rng.uniform((block.west + 3, block.south + 3), (block.east - 3, block.north - 3))
                sprites.append(_Sprite(float(east), float(north), sheet, width))
        return sprites

    def _traffic(self, camera: Camera, cars: list[list[int]], rng: np.random.Generator) -> Walls:
        """Cars in the streets around the camera, none of them on top of it."""
        walls: list[_Wall] = []
        for street in self.streets:
            for _ in range(rng.poisson(street.length_m / 45.0)):
                along, away, parked = rng.uniform(8, street.length_m - 8), rng.random() < 0.5, rng.random() < 0.5
                lane = 3.9 if parked else LANE_M
                centre = street.at(along, lane if away else -lane)
                car = cars[int(rng.integers(_CARS))]
                if 5.0 < math.dist(centre, (camera.east, camera.north)) < 120.0:
                    _add_car(walls, car, centre, street, away=away)
        return _walls(walls)


def _facing(camera: Camera, sprites: list[_Sprite]) -> Walls:
    """Trees and lamps, turned towards the camera."""
    _, right = camera.axes()
    centre = np.array([(sprite.east, sprite.north) for sprite in sprites]).reshape(-1, 2)
    half = np.array([sprite.width_m / 2 for sprite in sprites])[:, None] * right
    sheets = np.array([sprite.sheet for sprite in sprites], np.int64)
    return Walls(centre - half, centre + half, sheets, np.zeros(len(sprites), bool))


def _add_car(walls: list[_Wall], sheets: list[int], centre: tuple[float, float], street: Street, *, away: bool) -> None:
    """Four walls, each seen from outside."""
    heading = math.radians(street.heading_deg + (0 if away else 180))
    ahead = np.array([math.sin(heading), math.cos(heading)])
    front, side = ahead * _CAR_M[0] / 2, np.array([ahead[1], -ahead[0]]) * _CAR_M[1] / 2
    middle = np.array(centre)
    corners = [middle + front - side, middle + front + side, middle - front + side, middle - front - side]
    for sheet, (start, end) in zip(sheets, ((0, 3), (2, 1), (1, 0), (3, 2)), strict=True):
        walls.append((corners[start], corners[end], sheet))


def _tree_sheet(rng: np.random.Generator) -> Sheet:
    height, width = float(rng.uniform(5.0, 8.0)), float(rng.uniform(3.4, 5.0))
    sheet = Sheet(width, height, _SCALE)
    sheet.box(width / 2 - 0.15, 0, width / 2 + 0.15, height * 0.5, (92, 70, 50))
    red, green, blue = (int(channel) for channel in rng.integers((50, 100, 40), (120, 150, 80)))
    for x, y in rng.normal((width / 2, height * 0.68), (width * 0.18, height * 0.13), (60, 2)):
        radius = float(rng.uniform(0.3, 0.7))
        leaves = shade((red, green, blue), float(rng.uniform(0.65, 1.2)))
        sheet.ellipse(float(x), min(float(y), height - radius), radius, radius * 0.9, leaves)
    return sheet


def _lamp_sheet() -> Sheet:
    sheet = Sheet(0.9, 5.2, _SCALE)
    sheet.box(0.39, 0, 0.51, 4.5, _IRON)
    sheet.box(0.3, 0, 0.6, 0.5, _IRON)
    sheet.polygon([(0.2, 4.5), (0.7, 4.5), (0.82, 5.0), (0.08, 5.0)], (250, 236, 190), 254)
    sheet.box(0.05, 4.98, 0.85, 5.15, _IRON)
    return sheet


def _walls(walls: Sequence[_Wall]) -> Walls:
    starts, ends, sheets = zip(*walls, strict=True) if walls else ((), (), ())
    both = np.array([starts, ends], np.float64).reshape(2, -1, 2)
    return Walls(both[0], both[1], np.array(sheets, np.int64), np.ones(len(walls), bool))


def _car_sheets(paint: tuple[int, int, int]) -> list[Sheet]:
    """Left side, right side, front and back of a car."""
    length, width, height = _CAR_M
    sides, ends = [], []
    for nose, tail, front, windscreen in ((0.0, length, 1.0, 1.25), (length, 0.0, length - 1.0, length - 1.25)):
        ahead = 1 if nose < tail else -1
        sheet = Sheet(length, height, _SCALE)
        sheet.box(0.05, 0.3, length - 0.05, 0.9, paint)
        for x, y, top, half in ((front, 0.9, 1.5, 2.8), (windscreen, 0.95, 1.4, 2.25)):
            roof = [(x, y), (x + ahead * 0.5, top), (x + ahead * (half - 0.5), top), (x + ahead * half, y)]
            sheet.polygon(roof, paint if x == front else _CAR_GLASS)
        for x, lamp, glow in ((nose + ahead * 0.15, (250, 240, 210), 254), (tail - ahead * 0.15, (200, 30, 26), 220)):
            sheet.box(x - 0.1, 0.66, x + 0.1, 0.8, lamp, glow)
        for x in (0.95, length - 0.95):
            sheet.ellipse(x, 0.34, 0.34, 0.33, (26, 26, 28))
        sides.append(sheet)
    for lamp in ((255, 244, 214), (210, 30, 26)):
        sheet = Sheet(width, height, _SCALE)
        sheet.box(0.02, 0.28, width - 0.02, 0.92, paint)
        sheet.polygon([(0.12, 0.92), (0.32, 1.5), (1.48, 1.5), (1.68, 0.92)], paint)
        sheet.polygon([(0.24, 0.96), (0.4, 1.4), (1.4, 1.4), (1.56, 0.96)], _CAR_GLASS)
        for x in (0.1, 1.4):
            sheet.box(x, 0.62, x + 0.3, 0.8, lamp, 254)
            sheet.box(x, 0.02, x + 0.3, 0.32, (26, 26, 28))
        ends.append(sheet)
    return [*sides, *ends]
