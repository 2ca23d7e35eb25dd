"""A sheet to draw a façade or a sprite on, in metres with the ground at the bottom: colour, glow and outline."""

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from sightfix.toy_town.lettering import lettering
from sightfix.toy_town.light import Rgb


def shade(colour: Rgb, factor: float) -> Rgb:
    """A colour made darker (factor below 1) or lighter (above)."""
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


def mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    """A colour between two: `share` of the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


class Sheet:
    """A drawing in metres: x to the right from the left border, y up from the ground.

    Args:
        width_m, height_m: its size.
        scale: pixels per metre.
        colour: of the empty sheet.

    Attributes:
        colour: RGB image.
        glow: 8-bit image, what shines at dusk.
        cover: 8-bit image, 255 where something is drawn; elsewhere one sees through.
    """

    def __init__(self, width_m: float, height_m: float, scale: float, colour: Rgb = (128, 128, 128)) -> None:
        self.width_m, self.height_m, self.scale = width_m, height_m, scale
        size = (max(1, round(width_m * scale)), max(1, round(height_m * scale)))
        self.colour = Image.new("RGB", size, colour)
        self.glow = Image.new("L", size)
        self.cover = Image.new("L", size)
        self._pens = [ImageDraw.Draw(image) for image in (self.colour, self.glow, self.cover)]

    def sibling(self, width_m: float, height_m: float) -> Self:
        """An empty sheet of another size and the same scale."""
        return type(self)(width_m, height_m, self.scale)

    def x(self, metres: float) -> int:
        """The pixel column of a distance from the left border."""
        return round(metres * self.scale)

    def y(self, metres: float) -> int:
        """The pixel row of a height."""
        return self.colour.height - round(metres * self.scale)

    def _inks(self, colour: Rgb, glow: int) -> tuple[Rgb | int, ...]:
        return colour, glow, 255

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Rgb, glow: int = 0) -> None:
        """A filled rectangle from (x0, y0) below to (x1, y1) above; at least one pixel."""
        left, top = self.x(x0), self.y(y1)
        right, bottom = max(left, self.x(x1) - 1), max(top, self.y(y0) - 1)
        for pen, ink in zip(self._pens, self._inks(colour, glow), strict=True):
            pen.rectangle((left, top, right, bottom), fill=ink)

    def polygon(self, points: Sequence[tuple[float, float]], colour: Rgb, glow: int = 0) -> None:
        """A filled polygon."""
        corners = [(self.x(x), self.y(y) - 1) for x, y in points]
        for pen, ink in zip(self._pens, self._inks(colour, glow), strict=True):
            pen.polygon(corners, fill=ink)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Rgb, glow: int = 0) -> None:
        """A filled ellipse around (x, y)."""
        frame = (self.x(x - rx), self.y(y + ry), self.x(x + rx), self.y(y - ry))
        for pen, ink in zip(self._pens, self._inks(colour, glow), strict=True):
            pen.ellipse(frame, fill=ink)

    def arch(self, x0: float, y0: float, x1: float, y1: float, colour: Rgb, glow: int = 0, rise: float = 1.0) -> None:
        """A rectangle with a round top; `rise` is the top's height over half its width."""
        radius = (x1 - x0) / 2
        spring = y1 - radius * rise
        turns = [math.pi * step / 12 for step in range(13)]
        top = [(x0 + radius + radius * math.cos(turn), spring + radius * rise * math.sin(turn)) for turn in turns]
        self.polygon([(x1, y0), *top, (x0, y0)], colour, glow)

    def line(self, points: Sequence[tuple[float, float]], width_m: float, colour: Rgb, glow: int = 0) -> None:
        """A stroke along points; at least one pixel wide."""
        corners = [(self.x(x), self.y(y) - 1) for x, y in points]
        for pen, ink in zip(self._pens, self._inks(colour, glow), strict=True):
            pen.line(corners, fill=ink, width=max(1, round(width_m * self.scale)))

    def text(self, x: float, y: float, height_m: float, width_m: float, word: str, colour: Rgb, glow: int = 0) -> None:
        """A word in capitals, centred on (x, y), no larger than given; left out where no pixel a stroke fits."""
        ink = lettering(word)
        pixel = min(height_m * self.scale / ink.shape[0], width_m * self.scale / ink.shape[1])
        if pixel < 0.5:
            return
        size = (max(1, round(ink.shape[1] * pixel)), max(1, round(ink.shape[0] * pixel)))
        mask = Image.fromarray(ink.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        corner = (self.x(x) - size[0] // 2, self.y(y) - size[1] // 2)
        self.colour.paste(colour, (*corner, corner[0] + size[0], corner[1] + size[1]), mask)
        self.glow.paste(glow, (*corner, corner[0] + size[0], corner[1] + size[1]), mask)

    def stamp(self, other: "Sheet", x: float, y: float) -> None:
        """Another sheet of the same scale, its lower left corner at (x, y), where it covers."""
        corner = (self.x(x), self.y(y) - other.colour.height)
        self.colour.paste(other.colour, corner, other.cover)
        self.glow.paste(other.glow, corner, other.cover)
        self.cover.paste(other.cover, corner, other.cover)

    def pattern(self, y0: float, y1: float, rgb: NDArray[np.uint8]) -> None:
        """Fill the band between two heights with a picture (h, w, 3) that is at least as large."""
        top, bottom = self.y(y1), self.y(y0)
        width = self.colour.width
        self.colour.paste(Image.fromarray(np.ascontiguousarray(rgb[: bottom - top, :width])), (0, top))
        self.glow.paste(0, (0, top, width, bottom))
        self.cover.paste(255, (0, top, width, bottom))
