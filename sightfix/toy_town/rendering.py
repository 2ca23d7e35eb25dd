"""From a camera in the town to an image: vertical walls column by column, the ground and the sky behind them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retrieval.errors import ParameterError
from sightfix.toy_town.camera import Camera, Float64Array, level_window
from sightfix.toy_town.drawing import Rgb, Sheet

Float32Array = NDArray[np.float32]
RgbShare = tuple[float, float, float]
_MIP_LEVELS: Final = 5
# At most so many surfaces are drawn behind one another in a column: those in front hide nearly all beyond.
_LAYERS: Final = 7
_FAR_M: Final = 220.0
_NEAR_M: Final = 0.3


@dataclass(frozen=True, slots=True)
class Light:
    """One kind of light. Shares multiply a surface's colour; 1 leaves it as painted.

    Attributes:
        sun_azimuth_deg: where the sun stands, clockwise from north.
        sun_elevation_deg: of the sun; the length of shadows.
        sun: share of sunlight on a wall that faces the sun.
        sky: share of skylight on every wall.
        ground: share of light on the ground.
        shadow: share of the ground's light that a cast shadow takes.
        haze: the colour of distant surfaces.
        haze_m: distance at which haze covers 63 %.
        glow: what a lit window or sign adds, RGB.
        zenith, horizon: colours of the sky.
        noise: standard deviation of the sensor noise, grey levels.
    """

    sun_azimuth_deg: float
    sun_elevation_deg: float
    sun: RgbShare
    sky: RgbShare
    ground: RgbShare
    shadow: float
    haze: Rgb
    haze_m: float
    glow: RgbShare
    zenith: Rgb
    horizon: Rgb
    noise: float

    def on_walls(self, normal: Float64Array) -> Float32Array:
        """The share of light on walls.

        Args:
            normal: (N, 2) unit vectors east, north, pointing out of the wall.

        Returns:
            (N, 3) float32.
        """
        azimuth = math.radians(self.sun_azimuth_deg)
        facing = np.clip(normal @ np.array([math.sin(azimuth), math.cos(azimuth)]), 0, 1)[:, None]
        return np.asarray(np.array(self.sky) + np.sqrt(facing) * np.array(self.sun), np.float32)


# fmt: off
LIGHTS: Final[dict[str, Light]] = {
    "day": Light(
        sun_azimuth_deg=38, sun_elevation_deg=52, sun=(0.40, 0.37, 0.30), sky=(0.66, 0.69, 0.76),
        ground=(1.0, 0.98, 0.94), shadow=0.36, haze=(196, 214, 230), haze_m=520, glow=(0, 0, 0),
        zenith=(78, 138, 208), horizon=(206, 224, 238), noise=2.0,
    ),
    "dusk": Light(
        sun_azimuth_deg=242, sun_elevation_deg=6, sun=(0.30, 0.15, 0.05), sky=(0.34, 0.33, 0.46),
        ground=(0.36, 0.33, 0.42), shadow=0.25, haze=(166, 118, 122), haze_m=420, glow=(1.0, 0.76, 0.40),
        zenith=(44, 52, 104), horizon=(244, 150, 92), noise=3.5,
    ),
}
# fmt: on


def light_named(name: str) -> Light:
    """The light of that name.

    Raises:
        ParameterError: there is none; the choices are listed.
    """
    if name not in LIGHTS:
        raise ParameterError(f"the toy town has no light {name!r}", remedy=f"Choose one of {', '.join(LIGHTS)}")
    return LIGHTS[name]


@dataclass(frozen=True, slots=True)
class Atlas:
    """All sheets of the town in one flat array with mip levels, so that a frame is a few gathers.

    Attributes:
        texels: (T, 4) uint8: red, green, blue, and glow; glow is 0..254, 255 marks a transparent texel.
        offset: (sheets, levels) int64, where each picture begins.
        width, height: (sheets, levels) int32 in pixels.
        metres: (sheets, 2) float32, width and height of each sheet.
    """

    texels: NDArray[np.uint8]
    offset: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    metres: Float32Array

    @classmethod
    def of(cls, sheets: Sequence[Sheet]) -> Self:
        """Pack sheets, each with a chain of halved copies."""
        pieces, offsets, sizes, start = [], [], [], 0
        for sheet in sheets:
            images = (sheet.colour, sheet.glow, sheet.cover)
            for _ in range(_MIP_LEVELS):
                colour, glow, cover = (np.asarray(image) for image in images)
                texels = np.dstack([colour, np.minimum(glow, 254)])
                texels[cover < 128, 3] = 255
                pieces.append(texels.reshape(-1, 4))
                offsets.append(start)
                sizes.append(images[0].size)
                start += len(pieces[-1])
                images = (images[0].reduce(2), images[1].reduce(2), images[2].reduce(2))
        shape = (len(sheets), _MIP_LEVELS)
        width, height = np.array(sizes, np.int32).T.reshape(2, *shape)
        return cls(
            np.concatenate(pieces),
            np.array(offsets, np.int64).reshape(shape),
            width,
            height,
            np.array([(sheet.width_m, sheet.height_m) for sheet in sheets], np.float32),
        )


@dataclass(frozen=True, slots=True)
class Walls:
    """Upright sheets that stand on the ground: façades, side walls, trees, lamps, cars.

    Attributes:
        start, end: (S, 2) float64 metres east and north; seen from its front, `start` is left.
        sheet: (S,) int64, row of the atlas.
        one_sided: (S,) bool, invisible from behind.
    """

    start: Float64Array
    end: Float64Array
    sheet: NDArray[np.int64]
    one_sided: NDArray[np.bool_]

    @classmethod
    def joined(cls, *parts: Self) -> Self:
        """All walls of several sets."""
        return cls(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in ("start", "end", "sheet", "one_sided")
            )
        )


@dataclass(frozen=True, slots=True)
class Ground:
    """The town's ground as a picture seen from above.

    Attributes:
        colour: (h, w, 3) uint8 RGB; row 0 is the southern edge.
        shadow: (h, w) bool, whether a building's shadow falls there by day.
        origin: east and north of its south-western corner, metres.
        scale: pixels per metre.
    """

    colour: NDArray[np.uint8]
    shadow: NDArray[np.bool_]
    origin: tuple[float, float]
    scale: float


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything a frame needs but the camera."""

    walls: Walls
    atlas: Atlas
    ground: Ground
    light: Light


def render(scene: Scene, camera: Camera, size: tuple[int, int], samples_per_px: float = 1.15) -> NDArray[np.uint8]:
    """Draw what a camera sees.

    Args:
        scene: the town in its light.
        camera: position and direction of view.
        size: width and height in pixels.
        samples_per_px: of the level window, before it is turned into the pitched and rolled image.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    window = level_window(camera, size, samples_per_px)
    x, y = window.slopes()
    frame = _sky(scene.light, camera, x, y)
    _draw_ground(frame, scene, camera, x, y)
    _draw_walls(frame, scene, camera, x, y)
    picture = Image.fromarray(np.clip(frame, 0, 255).astype(np.uint8))
    turned = picture.transform(size, Image.Transform.PERSPECTIVE, window.homography, Image.Resampling.BILINEAR)
    return np.asarray(turned)


def _sky(light: Light, camera: Camera, x: Float32Array, y: Float32Array) -> Float32Array:
    """The sky: a gradient with a few clouds that stand still over the town."""
    height = np.clip(np.arctan(y) / 0.9, 0, 1)[:, None, None] ** 0.6
    sky = np.array(light.horizon) * (1 - height) + np.array(light.zenith) * height
    frame = np.repeat(sky, len(x), axis=1).astype(np.float32)
    azimuth = math.radians(camera.heading_deg) + np.arctan(x)[None, :]
    up = np.maximum(y, 0.05)[:, None]
    cloud = np.sin(3 * azimuth + 1.0) + np.sin(7 * azimuth + 1.2 / (up + 0.3)) + np.sin(13 * azimuth - 2.0 / (up + 0.3))
    veil = np.clip((cloud - 0.6) * 0.2, 0, 0.35)[..., None]
    return np.asarray(frame * (1 - veil) + np.array(light.horizon, np.float32) * 1.02 * veil, np.float32)


def _draw_ground(frame: Float32Array, scene: Scene, camera: Camera, x: Float32Array, y: Float32Array) -> None:
    below = np.flatnonzero(y < -camera.height_m / _FAR_M)
    if not len(below):
        return
    depth = (camera.height_m / -y[below])[:, None]
    forward, right = (axis.astype(np.float32) for axis in camera.axes())
    east = camera.east + depth * forward[0] + depth * x[None] * right[0]
    north = camera.north + depth * forward[1] + depth * x[None] * right[1]
    ground = scene.ground
    rows, columns = ground.shadow.shape
    column = ((east - ground.origin[0]) * ground.scale).astype(np.int32).clip(0, columns - 1)
    row = ((north - ground.origin[1]) * ground.scale).astype(np.int32).clip(0, rows - 1)
    light = scene.light
    dark = 1 - light.shadow * ground.shadow[row, column][..., None]
    colour = ground.colour[row, column] * np.array(light.ground, np.float32) * dark
    frame[below] = _hazed(colour, depth[..., None], light)


def _hazed(colour: Float32Array, depth: Float32Array, light: Light) -> Float32Array:
    clear = np.exp(-depth / light.haze_m).astype(np.float32)
    return np.asarray(colour * clear + np.array(light.haze, np.float32) * (1 - clear), np.float32)


def _draw_walls(frame: Float32Array, scene: Scene, camera: Camera, x: Float32Array, y: Float32Array) -> None:
    walls, atlas, light = scene.walls, scene.atlas, scene.light
    near, share, depth = _hits(walls, camera, x)
    normal = np.stack([walls.end[near, 1] - walls.start[near, 1], walls.start[near, 0] - walls.end[near, 0]], axis=1)
    lit = light.on_walls(normal / np.linalg.norm(normal, axis=1, keepdims=True))
    order = np.argsort(depth, axis=0)[:_LAYERS]
    focal = 1.0 / (x[1] - x[0])
    columns = np.arange(len(x))
    for layer in order[::-1]:
        distance = depth[layer, columns]
        seen = np.flatnonzero(np.isfinite(distance))
        if not len(seen):
            continue
        distance, which = distance[seen], near[layer[seen]]
        sheet = walls.sheet[which]
        texel_px = atlas.width[sheet, 0] / atlas.metres[sheet, 0] * distance / focal
        level = np.clip(np.log2(np.maximum(texel_px, 1e-3)) + 0.3, 0, _MIP_LEVELS - 1).astype(np.int64)
        width, height = atlas.width[sheet, level], atlas.height[sheet, level]
        u = (share[layer[seen], seen] * width).astype(np.int64).clip(0, width - 1)
        up = camera.height_m + y[:, None] * distance[None]
        v = ((1 - up / atlas.metres[sheet, 1]) * height).astype(np.int64)
        inside = (up >= 0) & (v >= 0) & (v < height)
        place = atlas.offset[sheet, level] + v.clip(0, height - 1) * width + u
        rows, cells = np.nonzero(inside)
        texels = atlas.texels[place[rows, cells]]
        solid = texels[:, 3] != 255
        rows, cells, texels = rows[solid], cells[solid], texels[solid]
        colour = texels[:, :3] * lit[layer[seen]][cells] + texels[:, 3:] * np.array(light.glow, np.float32)
        frame[rows, seen[cells]] = _hazed(colour, distance[cells, None], light)


def _hits(walls: Walls, camera: Camera, x: Float32Array) -> tuple[NDArray[np.int64], Float32Array, Float32Array]:
    """Which walls may be seen, where each column's ray meets them, and how far ahead (infinite where it does not)."""
    forward, right = camera.axes()
    eye = np.array([camera.east, camera.north])
    start, end = walls.start - eye, walls.end - eye
    facing = start[:, 0] * end[:, 1] - start[:, 1] * end[:, 0] < 0
    ahead = np.maximum(start @ forward, end @ forward) > _NEAR_M
    close = np.minimum((start**2).sum(1), (end**2).sum(1)) < _FAR_M**2
    near = np.flatnonzero(ahead & close & (facing | ~walls.one_sided))
    start_f, start_r = (start[near] @ axis for axis in (forward, right))
    end_f, end_r = (end[near] @ axis for axis in (forward, right))
    low, high = np.sort(np.stack([start_r / np.maximum(start_f, _NEAR_M), end_r / np.maximum(end_f, _NEAR_M)]), axis=0)
    behind = (start_f < _NEAR_M) | (end_f < _NEAR_M)
    in_view = behind | ((high >= x[0]) & (low <= x[-1]))
    near = near[in_view]
    start_f, start_r, end_f, end_r = (
        side[in_view][:, None].astype(np.float32) for side in (start_f, start_r, end_f, end_r)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (x * start_f - start_r) / ((end_r - start_r) - x * (end_f - start_f))
        depth = start_f + share * (end_f - start_f)
    met = (share >= 0) & (share < 1) & (depth > _NEAR_M)
    return near, share, np.where(met, depth, np.float32(np.inf))
