"""From a camera in the town to an image: vertical walls column by column, the ground and the sky behind them."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightfix.toy_town.atlas import LEVELS, Atlas
from sightfix.toy_town.camera import Camera, Float64Array, LevelWindow, level_window
from sightfix.toy_town.light import Light

Float32Array = NDArray[np.float32]

# So many surfaces may lie behind one another in a column: those in front hide nearly all beyond.
_LAYERS: Final = 7
_FAR_M: Final = 220.0
_NEAR_M: Final = 0.3


@dataclass(frozen=True, slots=True)
class Walls:
    """Upright pictures: façades, side walls, trees, lamps, cars.

    Attributes:
        start, end: (S, 2) float64 metres east and north; seen from its front, `start` is left.
        sheet: (S,) int64, which picture of the atlas.
        one_sided: (S,) bool, invisible from behind.
        base_m: (S,) float32, height of the picture's lower edge.
    """

    start: Float64Array
    end: Float64Array
    sheet: NDArray[np.int64]
    one_sided: NDArray[np.bool_]
    base_m: Float32Array

    def joined(self, other: "Walls") -> "Walls":
        """These walls and others."""
        return Walls(
            np.concatenate([self.start, other.start]),
            np.concatenate([self.end, other.end]),
            np.concatenate([self.sheet, other.sheet]),
            np.concatenate([self.one_sided, other.one_sided]),
            np.concatenate([self.base_m, other.base_m]),
        )


@dataclass(frozen=True, slots=True)
class Ground:
    """The town's ground as a picture seen from above.

    Attributes:
        texels: (h, w, 4) uint8: red, green, blue, glow; row 0 is the southern edge.
        shadow: (h, w) uint8, 255 where a building's shadow falls by day.
        origin: east and north of its south-western corner, metres.
        scale: pixels per metre.
    """

    texels: NDArray[np.uint8]
    shadow: NDArray[np.uint8]
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
        camera: where it stands.
        size: width and height in pixels.
        samples_per_px: of the level window, before it is turned into the pitched and rolled image.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    window = level_window(camera, size, samples_per_px)
    x, y = window.slopes()
    frame = _sky(scene.light, camera, x, y)
    _draw_ground(frame, scene, camera, window, x, y)
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


def _draw_ground(
    frame: Float32Array, scene: Scene, camera: Camera, window: LevelWindow, x: Float32Array, y: Float32Array
) -> None:
    below = np.flatnonzero(y < -camera.height_m / _FAR_M)
    if not len(below):
        return
    depth = (camera.height_m / -y[below])[:, None]
    forward, right = (axis.astype(np.float32) for axis in camera.axes())
    east = camera.east + depth * forward[0] + depth * x[None] * right[0]
    north = camera.north + depth * forward[1] + depth * x[None] * right[1]
    ground = scene.ground
    rows, columns = ground.texels.shape[:2]
    column = ((east - ground.origin[0]) * ground.scale).astype(np.int32).clip(0, columns - 1)
    row = ((north - ground.origin[1]) * ground.scale).astype(np.int32).clip(0, rows - 1)
    texels = ground.texels[row, column]
    light = scene.light
    dark = 1 - light.shadow * (ground.shadow[row, column][..., None] > 0)
    colour = texels[..., :3] * np.array(light.ground, np.float32) * dark
    colour += texels[..., 3:] * np.array(light.glow, np.float32)
    frame[below] = _hazed(colour, depth[..., None], light)


def _hazed(colour: Float32Array, depth: Float32Array, light: Light) -> Float32Array:
    clear = np.exp(-depth / light.haze_m).astype(np.float32)
    return np.asarray(colour * clear + np.array(light.haze, np.float32) * (1 - clear), np.float32)


def _draw_walls(frame: Float32Array, scene: Scene, camera: Camera, x: Float32Array, y: Float32Array) -> None:
    walls, atlas, light = scene.walls, scene.atlas, scene.light
    near, share, depth = _hits(walls, camera, x)
    normal = np.stack([walls.end[near, 1] - walls.start[near, 1], walls.start[near, 0] - walls.end[near, 0]], axis=1)
    lit = light.on_wall(normal / np.linalg.norm(normal, axis=1, keepdims=True))
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
        level = np.clip(np.log2(np.maximum(texel_px, 1e-3)) + 0.3, 0, LEVELS - 1).astype(np.int64)
        width, height = atlas.width[sheet, level], atlas.height[sheet, level]
        u = (share[layer[seen], seen] * width).astype(np.int64).clip(0, width - 1)
        up = camera.height_m + y[:, None] * distance[None] - walls.base_m[which]
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
