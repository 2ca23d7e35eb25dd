"""All pictures of the town in one flat array with mip levels, so that a frame is a few gathers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sightfix.toy_town.sheet import Sheet

LEVELS: Final = 5


@dataclass(frozen=True, slots=True)
class Atlas:
    """Sheets, packed.

    Attributes:
        texels: (T, 4) uint8: red, green, blue, and glow; glow is 0..254, 255 marks what one sees through.
        offset: (sheets, levels) int64, where each picture begins.
        width, height: (sheets, levels) int32 in pixels.
        metres: (sheets, 2) float32, width and height of each sheet.
    """

    texels: NDArray[np.uint8]
    offset: NDArray[np.int64]
    width: NDArray[np.int32]
    height: NDArray[np.int32]
    metres: NDArray[np.float32]


def pack(sheets: Sequence[Sheet]) -> Atlas:
    """Pack sheets with a chain of halved copies each."""
    pieces, offsets, widths, heights, start = [], [], [], [], 0
    for sheet in sheets:
        colour, glow, cover = sheet.colour, sheet.glow, sheet.cover
        for _ in range(LEVELS):
            texels = np.dstack([np.asarray(colour), np.minimum(np.asarray(glow), 254)])
            texels[np.asarray(cover) < 128, 3] = 255
            pieces.append(texels.reshape(-1, 4))
            offsets.append(start)
            widths.append(colour.width)
            heights.append(colour.height)
            start += colour.width * colour.height
            half = (max(1, colour.width // 2), max(1, colour.height // 2))
            colour, glow, cover = (image.resize(half, Image.Resampling.BOX) for image in (colour, glow, cover))
    shape = (len(sheets), LEVELS)
    return Atlas(
        np.concatenate(pieces),
        np.array(offsets, np.int64).reshape(shape),
        np.array(widths, np.int32).reshape(shape),
        np.array(heights, np.int32).reshape(shape),
        np.array([(sheet.width_m, sheet.height_m) for sheet in sheets], np.float32),
    )
