"""The town: an irregular grid of streets, blocks of houses, a park, and what stands in the streets."""

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError
from retrieval.geo import Position, from_local_metres
from sightfix.toy_town.atlas import Atlas, pack
from sightfix.toy_town.camera import Camera, Float64Array
from sightfix.toy_town.facade import draw_facade, draw_side
from sightfix.toy_town.facade_style import random_style
from sightfix.toy_town.ground import paint_ground
from sightfix.toy_town.light import light_named
from sightfix.toy_town.plan import LANE_M, Block, Street, plan_town
from sightfix.toy_town.randomness import generator
from sightfix.toy_town.renderer import Ground, Scene, Walls, render
from sightfix.toy_town.sheet import Sheet
from sightfix.toy_town.street_furniture import CAR_LENGTH_M, CAR_WIDTH_M, CARS, car_sheets, furniture_sheets

# Point Nemo, the place in the ocean farthest from any land: nobody can mistake the toy town for a real one.
ORIGIN: Final = Position(-48.876667, -123.393333)

_SCALE: Final = 12.0
_SIDE_DEPTH_M: Final = 9.0


@dataclass(frozen=True, slots=True)
class _Sprite:
    """Something round that looks the same from everywhere: a tree, a lamp, a kiosk."""

    east: float
    north: float
    sheet: int
    width_m: float


@dataclass
class _Builder:
    """Collects walls and their pictures."""

    sheets: list[Sheet] = field(default_factory=list)
    start: list[Float64Array] = field(default_factory=list)
    end: list[Float64Array] = field(default_factory=list)
    sheet: list[int] = field(default_factory=list)
    one_sided: list[bool] = field(default_factory=list)

    def picture(self, sheet: Sheet) -> int:
        self.sheets.append(sheet)
        return len(self.sheets) - 1

    def wall(self, start: Float64Array, end: Float64Array, sheet: int, *, one_sided: bool) -> None:
        self.start.append(start)
        self.end.append(end)
        self.sheet.append(sheet)
        self.one_sided.append(one_sided)

    def walls(self) -> Walls:
        return Walls(
            np.array(self.start, np.float64).reshape(-1, 2),
            np.array(self.end, np.float64).reshape(-1, 2),
            np.array(self.sheet, np.int64),
            np.array(self.one_sided, bool),
            np.zeros(len(self.sheet), np.float32),
        )


class ToyTown:
    """A small town drawn from numbers: the same seed and size give the same pixels.

    Args:
        seed: not negative; another seed is another town.
        columns, rows: of blocks, 1 to 60 each.

    Attributes:
        blocks, streets: its plan.
        origin: where metre (0, 0), its south-western corner, lies on the Earth.

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
        builder = _Builder()
        self._sprites = _furnish(seed, self.blocks, self.streets, builder)
        for number, block in enumerate(self.blocks):
            if not block.park:
                _build_block(seed, number, block, builder)
        _build_edge(seed, self.size_m, builder)
        self._cars = [
            [builder.picture(sheet) for sheet in car_sheets(generator(seed, "car", number), _SCALE)]
            for number in range(CARS)
        ]
        self._walls = builder.walls()
        self._atlas: Atlas = pack(builder.sheets)
        self._ground: Ground = paint_ground(seed, self.blocks, self.streets, self.size_m)

    @property
    def street_m(self) -> float:
        """Length of all its streets."""
        return sum(street.length_m for street in self.streets)

    def position(self, east: float, north: float) -> Position:
        """Where a point of the town lies on the Earth."""
        return from_local_metres(self.origin, east, north)

    def photograph(
        self, camera: Camera, size: tuple[int, int] = (320, 240), light: str = "day", moment: int = 0
    ) -> NDArray[np.uint8]:
        """Take a photo.

        Args:
            camera: where it stands and looks.
            size: width and height in pixels.
            light: ``day``, ``dusk`` or ``overcast``.
            moment: decides the cars that pass, the exposure and the noise; the same moment, the same photo.

        Returns:
            (height, width, 3) uint8 RGB.

        Raises:
            ParameterError: no such light.
        """
        rng = generator(self.seed, "moment", moment)
        walls = self._walls.joined(self._facing(camera)).joined(self._traffic(camera, rng))
        frame = render(Scene(walls, self._atlas, self._ground, light_named(light)), camera, size)
        exposure = rng.normal(1.0, 0.05)
        noise = rng.normal(0.0, 2.0 if light == "day" else 3.5, frame.shape[:2])[..., None]
        return np.asarray(np.clip(frame * exposure + noise, 0, 255), np.uint8)

    def _facing(self, camera: Camera) -> Walls:
        """Trees, lamps and kiosks, turned towards the camera."""
        _, right = camera.axes()
        centre = np.array([(sprite.east, sprite.north) for sprite in self._sprites]).reshape(-1, 2)
        half = np.array([sprite.width_m / 2 for sprite in self._sprites])[:, None] * right
        count = len(self._sprites)
        sheets = np.array([sprite.sheet for sprite in self._sprites], np.int64)
        return Walls(centre - half, centre + half, sheets, np.zeros(count, bool), np.zeros(count, np.float32))

    def _traffic(self, camera: Camera, rng: np.random.Generator) -> Walls:
        """Cars in the streets around the camera, none of them on top of it."""
        builder = _Builder()
        eye = (camera.east, camera.north)
        for street in self.streets:
            for _ in range(rng.poisson(street.length_m / 45.0)):
                along, away = rng.uniform(8, street.length_m - 8), bool(rng.integers(2))
                parked = rng.random() < 0.5
                lane = 3.9 if parked else LANE_M
                centre = street.at(along, lane if away else -lane)
                kind = int(rng.integers(CARS))
                if 5.0 < math.dist(centre, eye) < 120.0:
                    _add_car(builder, self._cars[kind], centre, street.heading_deg + (0 if away else 180))
        return builder.walls()


def _build_block(seed: int, number: int, block: Block, builder: _Builder) -> None:
    corners = [
        (block.west, block.south),
        (block.east, block.south),
        (block.east, block.north),
        (block.west, block.north),
    ]
    for side in range(4):
        _build_row(seed, (number, side), corners[side], corners[(side + 1) % 4], builder)


def _build_edge(seed: int, size_m: tuple[float, float], builder: _Builder) -> None:
    """Houses on the outer side of the outermost streets: no view out of the town."""
    width, height = size_m
    corners = [(0.0, 0.0), (0.0, height), (width, height), (width, 0.0)]
    for side in range(4):
        _build_row(seed, (9999, side), corners[side], corners[(side + 1) % 4], builder)


def _build_row(
    seed: int, name: tuple[int, int], start: tuple[float, float], end: tuple[float, float], builder: _Builder
) -> None:
    """A row of houses; from the street, `start` is left."""
    origin, length = np.array(start), math.dist(start, end)
    along = (np.array(end) - origin) / length
    depth = np.array([-along[1], along[0]]) * _SIDE_DEPTH_M
    rng = generator(seed, "row", *name)
    houses = max(2, round(length / rng.uniform(8.5, 12.5)))
    cuts = np.concatenate([[0.0], np.cumsum(rng.uniform(0.7, 1.3, houses))])
    cuts *= length / cuts[-1]
    for house in range(houses):
        house_rng = generator(seed, "house", *name, house)
        style = random_style(house_rng, int(house_rng.integers(2, 6)))
        left, right = origin + along * cuts[house], origin + along * cuts[house + 1]
        facade = builder.picture(draw_facade(style, float(cuts[house + 1] - cuts[house]), _SCALE, house_rng))
        builder.wall(left, right, facade, one_sided=True)
        # Sides and back show above lower neighbours. At a corner the side would lie in the next row's façades.
        flank = builder.picture(draw_side(style, _SIDE_DEPTH_M, _SCALE / 2, house_rng))
        if house < houses - 1:
            builder.wall(right, right + depth, flank, one_sided=True)
        if house > 0:
            builder.wall(left + depth, left, flank, one_sided=True)
        builder.wall(right + depth, left + depth, flank, one_sided=True)


def _furnish(seed: int, blocks: list[Block], streets: list[Street], builder: _Builder) -> list[_Sprite]:
    rng = generator(seed, "furniture")
    kinds = [(builder.picture(sheet), sheet.width_m) for sheet in furniture_sheets(rng, _SCALE)]
    trees, lamp, small, fountain = kinds[:5], kinds[5], kinds[6:9], kinds[9]
    sprites = []
    for street in streets:
        for along in np.arange(9.0, street.length_m - 6.0, 18.0):
            side = 5.2 if rng.random() < 0.5 else -5.2
            draw = rng.random()
            if draw < 0.86:
                sheet, width = lamp
                if draw > 0.45:
                    sheet, width = trees[int(rng.integers(5))] if draw < 0.75 else small[int(rng.integers(3))]
                sprites.append(_Sprite(*street.at(float(along + rng.uniform(-3, 3)), side), sheet, width))
    for block in (block for block in blocks if block.park):
        for _ in range(26):
            sheet, width = trees[int(rng.integers(5))]
            east = rng.uniform(block.west + 3, block.east - 3)
            north = rng.uniform(block.south + 3, block.north - 3)
            sprites.append(_Sprite(float(east), float(north), sheet, width))
        sheet, width = fountain
        sprites.append(_Sprite((block.west + block.east) / 2, (block.south + block.north) / 2, sheet, width))
    return sprites


def _add_car(builder: _Builder, sheets: list[int], centre: tuple[float, float], heading_deg: float) -> None:
    heading = math.radians(heading_deg)
    ahead = np.array([math.sin(heading), math.cos(heading)])
    right = np.array([ahead[1], -ahead[0]])
    front, side = ahead * CAR_LENGTH_M / 2, right * CAR_WIDTH_M / 2
    middle = np.array(centre)
    corners = [middle + front - side, middle + front + side, middle - front + side, middle - front - side]
    left_side, right_side, nose, tail = sheets
    # Seen from outside: start is left.
    builder.wall(corners[2], corners[1], right_side, one_sided=True)
    builder.wall(corners[0], corners[3], left_side, one_sided=True)
    builder.wall(corners[1], corners[0], nose, one_sided=True)
    builder.wall(corners[3], corners[2], tail, one_sided=True)
