"""The town's plan as a picture: streets, houses, where references were taken, where a query was and was found."""

import math
from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw

from retrieval.geo import Position, to_local_metres
from sightfix.toy_town.light import Rgb
from sightfix.toy_town.town import ToyTown

_MARGIN_M: Final = 12.0
_OVERSAMPLING: Final = 3

_STREET: Final = (255, 255, 255)
_HOUSES: Final = (214, 202, 186)
_PARK: Final = (184, 214, 164)
_REFERENCE: Final = (120, 140, 160)
_TRUTH: Final = (0, 114, 178)
_FIX: Final = (213, 94, 0)


def draw_town_map(
    town: ToyTown,
    references: Sequence[Position] = (),
    *,
    truth: Position | None = None,
    fix: Position | None = None,
    radius_m: float | None = None,
    width: int = 640,
) -> Image.Image:
    """Draw the town from above, north up.

    Args:
        town: which.
        references: small dots.
        truth: where a query was taken, a blue dot.
        fix: where it was found, an orange ring.
        radius_m: of the fix, a circle around it.
        width: of the picture in pixels.

    Returns:
        an RGB image.
    """
    scale = width * _OVERSAMPLING / (town.size_m[0] + 2 * _MARGIN_M)
    size = (width * _OVERSAMPLING, round((town.size_m[1] + 2 * _MARGIN_M) * scale))
    picture = Image.new("RGB", size, _HOUSES)
    pen = ImageDraw.Draw(picture)

    def point(east: float, north: float) -> tuple[float, float]:
        return (east + _MARGIN_M) * scale, size[1] - (north + _MARGIN_M) * scale

    def local(position: Position) -> tuple[float, float]:
        (east, north), = to_local_metres(town.origin, [position.lat], [position.lon])  # fmt: skip
        return point(float(east), float(north))

    def box(west: float, south: float, east: float, north: float, colour: Rgb) -> None:
        pen.rectangle((*point(west, north), *point(east, south)), fill=colour)

    def ring(position: Position, radius_px: float, colour: Rgb, line_px: float, fill: Rgb | None = None) -> None:
        x, y = local(position)
        frame = (x - radius_px, y - radius_px, x + radius_px, y + radius_px)
        pen.ellipse(frame, outline=colour, width=max(1, round(line_px)), fill=fill)

    box(0, 0, *town.size_m, _STREET)
    for block in town.blocks:
        box(block.west, block.south, block.east, block.north, _PARK if block.park else _HOUSES)
    dot = 1.6 * _OVERSAMPLING
    for reference in references:
        ring(reference, dot, _REFERENCE, 1, _REFERENCE)
    if fix is not None:
        if radius_m:
            ring(fix, radius_m * scale, _FIX, 1.5 * _OVERSAMPLING)
        ring(fix, 4.5 * dot, _FIX, 2.2 * _OVERSAMPLING)
    if truth is not None:
        ring(truth, 2.4 * dot, _TRUTH, 1, _TRUTH)
    _scale_bar(pen, size, scale)
    return picture.resize((width, math.ceil(size[1] / _OVERSAMPLING)), Image.Resampling.LANCZOS)


def _scale_bar(pen: ImageDraw.ImageDraw, size: tuple[int, int], scale: float) -> None:
    left, bottom, height = 4 * _OVERSAMPLING, size[1] - 4 * _OVERSAMPLING, 3 * _OVERSAMPLING
    pen.rectangle((left, bottom - height, left + 50 * scale, bottom), fill=(40, 40, 40))
    font_size = 11 * _OVERSAMPLING
    pen.text((left, bottom - height - font_size * 1.25), "50 m", fill=(40, 40, 40), font_size=font_size)
