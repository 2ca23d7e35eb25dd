"""A sheet to draw a façade, a tree or a car on, in metres with the ground at the bottom, and patterns of masonry."""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rgb = tuple[int, int, int]

# Height of a course and length of a block in metres, and how much blocks differ in brightness; three times the size of
# real bricks, because smaller ones are not seen at street distance.
_COURSES: Final = {
    "brick": (0.22, 0.52, 0.16),
    "stone": (0.55, 1.1, 0.10),
    "boards": (0.26, 3.4, 0.06),
    "panels": (1.6, 2.4, 0.05),
}


@cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(32)


def shade(colour: Rgb, factor: float) -> Rgb:
    """A colour made darker (factor below 1) or lighter (above)."""
    red, green, blue = (min(255, max(0, round(channel * factor))) for channel in colour)
    return red, green, blue


class Sheet:
    """A drawing in metres: x to the right from the left border, y up from the ground.

    Args:
        width_m, height_m: its size.
        scale: pixels per metre.

    Attributes:
        colour: RGB image.
        glow: 8-bit image, what shines at dusk.
        cover: 8-bit image, 255 where something is drawn; the rest is transparent.
    """

    def __init__(self, width_m: float, height_m: float, scale: float) -> None:
        self.width_m, self.height_m, self.scale = width_m, height_m, scale
        size = (max(1, round(width_m * scale)), max(1, round(height_m * scale)))
        self.colour = Image.new("RGB", size, (128, 128, 128))
        self.glow = Image.new("L", size)
        self.cover = Image.new("L", size)
        self._pens = [ImageDraw.Draw(image) for image in (self.colour, self.glow, self.cover)]

    def _inks(self, colour: Rgb, glow: int = 0) -> Iterator[tuple[ImageDraw.ImageDraw, Rgb | int]]:
        return zip(self._pens, (colour, glow, 255), strict=True)

    def _x(self, metres: float) -> int:
        return round(metres * self.scale)

    def _y(self, metres: float) -> int:
        return self.colour.height - round(metres * self.scale)

    def box(self, x0: float, y0: float, x1: float, y1: float, colour: Rgb, glow: int = 0) -> None:
        """A filled rectangle from (x0, y0) below to (x1, y1) above; at least one pixel."""
        left, top = self._x(x0), self._y(y1)
        right, bottom = max(left, self._x(x1) - 1), max(top, self._y(y0) - 1)
        for pen, ink in self._inks(colour, glow):
            pen.rectangle((left, top, right, bottom), fill=ink)

    def polygon(self, points: Sequence[tuple[float, float]], colour: Rgb, glow: int = 0) -> None:
        """A filled polygon."""
        corners = [(self._x(x), self._y(y) - 1) for x, y in points]
        for pen, ink in self._inks(colour, glow):
            pen.polygon(corners, fill=ink)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Rgb, glow: int = 0) -> None:
        """A filled ellipse around (x, y)."""
        frame = (self._x(x - rx), self._y(y + ry), self._x(x + rx), self._y(y - ry))
        for pen, ink in self._inks(colour, glow):
            pen.ellipse(frame, fill=ink)

    def arch(self, x0: float, y0: float, x1: float, y1: float, colour: Rgb, glow: int = 0) -> None:
        """A rectangle whose top is a half circle."""
        radius = (x1 - x0) / 2
        turns = [math.pi * step / 12 for step in range(13)]
        top = [(x0 + radius + radius * math.cos(turn), y1 - radius + radius * math.sin(turn)) for turn in turns]
        self.polygon([(x1, y0), *top, (x0, y0)], colour, glow)

    def line(self, points: Sequence[tuple[float, float]], width_m: float, colour: Rgb) -> None:
        """A stroke along points; at least one pixel wide."""
        corners = [(self._x(x), self._y(y) - 1) for x, y in points]
        for pen, ink in self._inks(colour):
            pen.line(corners, fill=ink, width=max(1, round(width_m * self.scale)))

    def text(self, x: float, y: float, height_m: float, width_m: float, word: str, colour: Rgb, glow: int) -> None:
        """A word centred on (x, y), no larger than given, in the font that Pillow brings along."""
        font = _font()
        left, top, right, bottom = font.getbbox(word)
        mask = Image.new("L", (round(right - left), round(bottom - top)))
        ImageDraw.Draw(mask).text((-left, -top), word, fill=255, font=font)
        pixel = min(height_m * self.scale / mask.height, width_m * self.scale / mask.width)
        mask = mask.resize((max(1, round(mask.width * pixel)), max(1, round(mask.height * pixel))))
        corner = (self._x(x) - mask.width // 2, self._y(y) - mask.height // 2)
        for image, ink in ((self.colour, colour), (self.glow, glow)):
            image.paste(ink, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask)

    def stamp(self, other: "Sheet", x: float, y: float) -> None:
        """Another sheet of the same scale, its lower left corner at (x, y), where it covers."""
        corner = (self._x(x), self._y(y) - other.colour.height)
        self.colour.paste(other.colour, corner, other.cover)
        self.glow.paste(other.glow, corner, other.cover)
        self.cover.paste(other.cover, corner, other.cover)

    def masonry(self, y0: float, y1: float, material: str, colour: Rgb, rng: np.random.Generator) -> None:
        """Fill the band between two heights with a wall.

        Args:
            y0, y1: lower and upper edge.
            material: ``plaster``, ``brick``, ``stone``, ``boards`` or ``panels``.
            colour: of the bricks, boards or plaster.
            rng: tints and stains.
        """
        top, bottom = self._y(y1), self._y(y0)
        width, height = self.colour.width, bottom - top
        surface = np.broadcast_to(np.array(colour, np.float32), (height, width, 3))
        if material in _COURSES:
            surface = _blocks(surface, material, self.scale, rng)
        else:
            surface = surface * rng.uniform(0.965, 1.035, (height, width, 1)).astype(np.float32)
        surface = surface * _stains(height, width, self.scale, rng)[..., None]
        self.colour.paste(Image.fromarray(np.clip(surface, 0, 255).astype(np.uint8)), (0, top))
        self.glow.paste(0, (0, top, width, bottom))
        self.cover.paste(255, (0, top, width, bottom))


def _blocks(surface: NDArray[np.float32], material: str, scale: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Running bond: courses of blocks, every second course shifted by half a block."""
    course_m, length_m, tint = _COURSES[material]
    course, length = max(3.0, course_m * scale), max(5.0, length_m * scale)
    rows, columns = np.arange(surface.shape[0]), np.arange(surface.shape[1])
    course_of = (rows / course).astype(int)
    along = columns[None, :] + (course_of % 2)[:, None] * length / 2
    block = (along / length).astype(int)
    tints = rng.uniform(1 - tint, 1 + tint, (course_of[-1] + 1, block.max() + 1)).astype(np.float32)
    tinted = surface * tints[course_of[:, None], block][..., None]
    gap = (rows % course < 1.0)[:, None] | (along % length < 1.0)
    # Light joints in dark masonry, dark ones in light masonry.
    tinted[gap] = tinted[gap] * 0.45 + (0.55 * 220 if surface.mean() < 130 else 0.55 * 80)
    return np.asarray(tinted, np.float32)


def _stains(height: int, width: int, scale: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Slow brightness changes of a few per cent, and the damp dark foot of a wall: (height, width) float32."""
    cells = rng.uniform(0.93, 1.05, (max(2, round(height / scale / 2)), max(2, round(width / scale / 3))))
    smooth = Image.fromarray(cells.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    foot = 1 - 0.18 * np.exp(-np.arange(height)[::-1] / (0.7 * scale))
    return np.asarray(np.asarray(smooth) * foot[:, None], np.float32)
