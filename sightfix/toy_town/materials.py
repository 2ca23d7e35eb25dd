"""What walls are made of: brick, plaster, stone, boards, tiles and concrete as pixel patterns."""

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sightfix.toy_town.light import Rgb

Pattern = NDArray[np.uint8]
_Painter = Callable[[int, int, float, Rgb, Rgb, np.random.Generator], NDArray[np.float32]]


def wall_pattern(
    material: str, size: tuple[int, int], scale: float, colour: Rgb, joint: Rgb, rng: np.random.Generator
) -> Pattern:
    """A wall surface without openings.

    Args:
        material: a key of `MATERIALS`.
        size: width and height in pixels.
        scale: pixels per metre.
        colour: of the bricks, boards or plaster.
        joint: of the mortar, gaps or ornament.
        rng: stains and tints.

    Returns:
        (height, width, 3) uint8.
    """
    width, height = size
    surface = MATERIALS[material](width, height, scale, colour, joint, rng)
    surface *= _stains(width, height, scale, rng)[..., None]
    return np.clip(surface, 0, 255).astype(np.uint8)


def _stains(width: int, height: int, scale: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Slow brightness changes of a few per cent, and the damp dark foot of a wall."""
    cells = rng.uniform(0.93, 1.05, (height // max(1, round(2 * scale)) + 2, width // max(1, round(3 * scale)) + 2))
    rows = np.linspace(0, cells.shape[0] - 1.001, height)
    columns = np.linspace(0, cells.shape[1] - 1.001, width)
    r, c = rows.astype(int), columns.astype(int)
    fr, fc = (rows - r)[:, None], columns - c
    above = cells[r][:, c] * (1 - fc) + cells[r][:, c + 1] * fc
    below = cells[r + 1][:, c] * (1 - fc) + cells[r + 1][:, c + 1] * fc
    foot = 1 - 0.18 * np.exp(-np.arange(height)[::-1] / (0.7 * scale))
    return np.asarray((above * (1 - fr) + below * fr) * foot[:, None], np.float32)


def _flat(width: int, height: int, colour: Rgb) -> NDArray[np.float32]:
    return np.broadcast_to(np.array(colour, np.float32), (height, width, 3)).copy()


def _plaster(
    width: int, height: int, scale: float, colour: Rgb, joint: Rgb, rng: np.random.Generator
) -> NDArray[np.float32]:
    surface = _flat(width, height, colour)
    surface *= rng.uniform(0.965, 1.035, (height, width, 1)).astype(np.float32)
    return surface


def _courses(
    width: int,
    height: int,
    course: float,
    length: float,
    tint: float,
    colour: Rgb,
    joint: Rgb,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Running bond: rows of blocks, every second row shifted by half a block; sizes in pixels."""
    rows, columns = np.arange(height), np.arange(width)
    course_of = (rows / course).astype(int)
    along = columns[None, :] + (course_of % 2)[:, None] * length / 2
    block = (along / length).astype(int)
    tints = rng.uniform(1 - tint, 1 + tint, (course_of[-1] + 1, block.max() + 1)).astype(np.float32)
    surface = _flat(width, height, colour) * tints[course_of[:, None], block][..., None]
    gap = ((rows % course < 1.0)[:, None]) | (along % length < 1.0)
    surface[gap] = surface[gap] * 0.35 + np.array(joint, np.float32) * 0.65
    return np.asarray(surface, np.float32)


def _brick(
    width: int, height: int, scale: float, colour: Rgb, joint: Rgb, rng: np.random.Generator
) -> NDArray[np.float32]:
    # Bricks three times the size of real ones: smaller ones are not seen at street distance.
    return _courses(width, height, max(3, 0.22 * scale), max(5, 0.52 * scale), 0.16, colour, joint, rng)


def _stone(
    width: int, height: int, scale: float, colour: Rgb, joint: Rgb, rng: np.random.Generator
) -> NDArray[np.float32]:
    return _courses(width, height, max(4, 0.55 * scale), max(6, 1.1 * scale), 0.10, colour, joint, rng)


def _boards(
    width: int, height: int, scale: float, colour: Rgb, joint: Rgb, rng: np.random.Generator
) -> NDArray[np.float32]:
    return _courses(width, height, max(3, 0.26 * scale), max(8, 3.4 * scale), 0.06, colour, joint, rng)


def _battens(
    width: int, height: int, scale: float, colour: Rgb, joint: Rgb, rng: np.random.Generator
) -> NDArray[np.float32]:
    upright = _courses(height, width, max(3, 0.3 * scale), 1e6, 0.07, colour, joint, rng)
    return upright.transpose(1, 0, 2)


def _tiles(
    width: int, height: int, scale: float, colour: Rgb, joint: Rgb, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Glazed tiles with a diamond in each."""
    cell = max(6, round(0.6 * scale))
    rows, columns = np.arange(height)[:, None] % cell, np.arange(width)[None, :] % cell
    half = cell / 2
    distance = np.abs(rows + 0.5 - half) + np.abs(columns + 0.5 - half)
    surface = _flat(width, height, colour)
    surface[(distance < half * 0.75) & (distance > half * 0.35)] = joint
    surface[(rows == 0) | (columns == 0)] *= 0.86
    return surface


def _panels(
    width: int, height: int, scale: float, colour: Rgb, joint: Rgb, rng: np.random.Generator
) -> NDArray[np.float32]:
    return _courses(width, height, max(6, 1.6 * scale), max(6, 2.4 * scale), 0.05, colour, joint, rng)


def _stripes(
    width: int, height: int, scale: float, colour: Rgb, joint: Rgb, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Two-coloured stone layers, as in Siena."""
    surface = _courses(width, height, max(4, 0.5 * scale), max(6, 1.0 * scale), 0.06, colour, colour, rng)
    band = (np.arange(height) / max(4, 0.5 * scale)).astype(int) % 2 == 1
    surface[band] *= np.array(joint, np.float32) / np.maximum(np.array(colour, np.float32), 1)
    return surface


MATERIALS: Final[dict[str, _Painter]] = {
    "plaster": _plaster,
    "brick": _brick,
    "stone": _stone,
    "boards": _boards,
    "battens": _battens,
    "tiles": _tiles,
    "panels": _panels,
    "stripes": _stripes,
}
