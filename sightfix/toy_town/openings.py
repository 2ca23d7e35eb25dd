"""Windows, shutters, balconies and doors, each drawn once as a small sheet and stamped where it belongs."""

from collections.abc import Callable
from typing import Final

import numpy as np

from sightfix.toy_town.facade_style import FacadeStyle
from sightfix.toy_town.light import Rgb
from sightfix.toy_town.sheet import Sheet, mix, shade

GLASS: Final[tuple[Rgb, ...]] = ((70, 88, 106), (92, 116, 136), (54, 64, 76), (120, 146, 164))
CURTAIN: Final[Rgb] = (226, 220, 204)


def window_sheets(sheet: Sheet, style: FacadeStyle) -> list[Sheet]:
    """The window of a building in four states: two dark ones, one lit at dusk, one dimly lit.

    Args:
        sheet: gives the scale.
        style: of the building.

    Returns:
        four sheets of one size, their lower edge at the foot of the storey, one bay wide.
    """
    return [_window(sheet, style, glass, glow) for glass, glow in ((0, 0), (1, 0), (2, 255), (3, 120))]


def _window(sheet: Sheet, style: FacadeStyle, glass: int, glow: int) -> Sheet:
    tile = sheet.sibling(style.bay_m, style.storey_m)
    width, height = style.bay_m * style.window_w, style.storey_m * style.window_h
    foot = (style.storey_m - height) * 0.55
    middle = style.bay_m / 2
    _SHAPES[style.window](
        tile, style, (middle - width / 2, foot, middle + width / 2, foot + height), GLASS[glass], glow
    )
    left, right = middle - width / 2, middle + width / 2
    if style.shutters:
        leaf = min(width * 0.5, middle - width / 2 - 0.05)
        for x in (left - leaf, right):
            tile.box(x, foot, x + leaf, foot + height, style.accent)
            tile.box(
                x + leaf * 0.2, foot + height * 0.1, x + leaf * 0.8, foot + height * 0.46, shade(style.accent, 0.8)
            )
            tile.box(
                x + leaf * 0.2, foot + height * 0.54, x + leaf * 0.8, foot + height * 0.9, shade(style.accent, 0.8)
            )
    if style.sills:
        tile.box(left - 0.12, foot - 0.14, right + 0.12, foot, shade(style.trim, 1.04))
        tile.box(left - 0.12, foot - 0.22, right + 0.12, foot - 0.14, shade(style.wall, 0.6))
    if style.flower_boxes:
        tile.box(left, foot - 0.06, right, foot + 0.16, (112, 74, 52))
        bloom = (style.sign, (214, 60, 84), (240, 190, 60))[style.storeys % 3]
        for step in range(6):
            x = left + (step + 0.5) * width / 6
            tile.ellipse(x, foot + 0.22, width / 10, 0.13, (70, 120, 60) if step % 2 else bloom)
    return tile


_Frame = tuple[float, float, float, float]


def _panes(tile: Sheet, style: FacadeStyle, frame: _Frame, glass: Rgb, glow: int, count: tuple[int, int]) -> None:
    """Glass with a frame around, a curtain or a reflection, and glazing bars."""
    x0, y0, x1, y1 = frame
    tile.box(x0, y0, x1, y1, style.frame)
    edge = 0.07
    tile.box(x0 + edge, y0 + edge, x1 - edge, y1 - edge, glass, glow)
    if glow == 0 and glass == GLASS[1]:
        tile.box(x0 + edge, (y0 + y1) / 2, x1 - edge, y1 - edge, mix(glass, CURTAIN, 0.7))
    tile.polygon(
        [(x0 + edge, y1 - edge), (x0 + (x1 - x0) * 0.55, y1 - edge), (x0 + edge, y0 + (y1 - y0) * 0.5)],
        shade(glass, 1.22),
        glow,
    )
    columns, rows = count
    for step in range(1, columns):
        x = x0 + (x1 - x0) * step / columns
        tile.box(x - 0.03, y0, x + 0.03, y1, style.frame)
    for step in range(1, rows):
        y = y0 + (y1 - y0) * step / rows
        tile.box(x0, y - 0.03, x1, y + 0.03, style.frame)


def _sash(tile: Sheet, style: FacadeStyle, frame: _Frame, glass: Rgb, glow: int) -> None:
    x0, y0, x1, y1 = frame
    tile.box(x0 - 0.14, y0, x1 + 0.14, y1 + 0.24, style.trim)
    _panes(tile, style, frame, glass, glow, (style.panes[0], 2))


def _casement(tile: Sheet, style: FacadeStyle, frame: _Frame, glass: Rgb, glow: int) -> None:
    _panes(tile, style, frame, glass, glow, (2, style.panes[1]))


def _arched(tile: Sheet, style: FacadeStyle, frame: _Frame, glass: Rgb, glow: int) -> None:
    x0, y0, x1, y1 = frame
    tile.arch(x0 - 0.16, y0, x1 + 0.16, y1 + 0.16, style.trim)
    tile.arch(x0, y0, x1, y1, style.frame)
    tile.arch(x0 + 0.07, y0 + 0.07, x1 - 0.07, y1 - 0.07, glass, glow)
    middle, spring = (x0 + x1) / 2, y1 - (x1 - x0) / 2
    tile.box(middle - 0.03, y0, middle + 0.03, y1, style.frame)
    tile.box(x0, spring - 0.03, x1, spring + 0.03, style.frame)


def _pointed(tile: Sheet, style: FacadeStyle, frame: _Frame, glass: Rgb, glow: int) -> None:
    x0, y0, x1, y1 = frame
    middle = (x0 + x1) / 2
    for edge, colour, shine in ((-0.15, style.trim, 0), (0.06, glass, glow)):
        spring = y1 - (x1 - x0) * 0.75
        tile.polygon(
            [(x0 + edge, y0), (x1 - edge, y0), (x1 - edge, spring), (middle, y1 - edge), (x0 + edge, spring)],
            colour,
            shine,
        )
    tile.box(middle - 0.03, y0, middle + 0.03, y1, style.frame)


def _tall(tile: Sheet, style: FacadeStyle, frame: _Frame, glass: Rgb, glow: int) -> None:
    x0, _, x1, _ = frame
    foot, top = 0.12, style.storey_m - 0.35
    inset = (x1 - x0) * 0.12
    tile.box(x0 + inset - 0.12, foot, x1 - inset + 0.12, top + 0.12, style.trim)
    _panes(tile, style, (x0 + inset, foot, x1 - inset, top), glass, glow, (2, style.panes[1] + 1))
    tile.polygon([(x0 - 0.1, top + 0.14), (x1 + 0.1, top + 0.14), ((x0 + x1) / 2, top + 0.34)], style.trim)


def _square(tile: Sheet, style: FacadeStyle, frame: _Frame, glass: Rgb, glow: int) -> None:
    x0, y0, x1, y1 = frame
    side = min(x1 - x0, y1 - y0)
    middle, centre = (x0 + x1) / 2, (y0 + y1) / 2
    box = (middle - side / 2, centre - side / 2, middle + side / 2, centre + side / 2)
    tile.box(box[0] - 0.1, box[1] - 0.1, box[2] + 0.1, box[3] + 0.1, style.trim)
    _panes(tile, style, box, glass, glow, style.panes)


def _paired(tile: Sheet, style: FacadeStyle, frame: _Frame, glass: Rgb, glow: int) -> None:
    x0, y0, x1, y1 = frame
    third = (x1 - x0) * 0.44
    tile.box(x0 - 0.08, y0 - 0.05, x1 + 0.08, y1 + 0.12, style.trim)
    _panes(tile, style, (x0, y0, x0 + third, y1), glass, glow, (1, style.panes[1]))
    _panes(tile, style, (x1 - third, y0, x1, y1), glass, glow, (1, style.panes[1]))


def _ribbon(tile: Sheet, style: FacadeStyle, frame: _Frame, glass: Rgb, glow: int) -> None:
    _, y0, _, y1 = frame
    height = (y1 - y0) * 0.8
    _panes(tile, style, (0, y0, style.bay_m, y0 + height), glass, glow, (max(2, style.panes[0]), 1))
    tile.box(0, y0 - 0.1, style.bay_m, y0, shade(style.trim, 0.9))


def _porthole(tile: Sheet, style: FacadeStyle, frame: _Frame, glass: Rgb, glow: int) -> None:
    x0, y0, x1, y1 = frame
    x, y, radius = (x0 + x1) / 2, (y0 + y1) / 2, min(x1 - x0, y1 - y0) / 2
    tile.ellipse(x, y, radius + 0.14, radius + 0.14, style.trim)
    tile.ellipse(x, y, radius, radius, style.frame)
    tile.ellipse(x, y, radius - 0.08, radius - 0.08, glass, glow)
    tile.box(x - radius, y - 0.03, x + radius, y + 0.03, style.frame)
    tile.box(x - 0.03, y - radius, x + 0.03, y + radius, style.frame)


def _grid(tile: Sheet, style: FacadeStyle, frame: _Frame, glass: Rgb, glow: int) -> None:
    """Glass from pillar to pillar, floor to floor."""
    _panes(tile, style, (0.14, 0.3, style.bay_m - 0.14, style.storey_m), glass, glow, (style.panes[0] + 1, 2))


_SHAPES: Final[dict[str, Callable[[Sheet, FacadeStyle, _Frame, Rgb, int], None]]] = {
    "sash": _sash,
    "casement": _casement,
    "arched": _arched,
    "tall": _tall,
    "square": _square,
    "paired": _paired,
    "ribbon": _ribbon,
    "porthole": _porthole,
    "pointed": _pointed,
    "grid": _grid,
}


def draw_balcony(sheet: Sheet, style: FacadeStyle, x0: float, x1: float, floor: float) -> None:
    """A balcony from x0 to x1 whose slab lies at a height."""
    rail = shade(style.accent, 0.8)
    sheet.box(x0, floor - 0.16, x1, floor + 0.02, shade(style.trim, 0.95))
    sheet.box(x0 + 0.1, floor - 0.36, x1 - 0.1, floor - 0.16, shade(style.wall, 0.55))
    sheet.box(x0, floor + 0.92, x1, floor + 1.02, rail)
    bars = max(3, int((x1 - x0) / 0.22))
    for step in range(bars + 1):
        x = x0 + (x1 - x0 - 0.06) * step / bars
        sheet.box(x, floor, x + 0.06, floor + 0.95, rail)


def draw_door(
    sheet: Sheet, style: FacadeStyle, x: float, width: float, height: float, rng: np.random.Generator
) -> None:
    """A house door with its frame and light, centred on x."""
    left, right = x - width / 2, x + width / 2
    kind = int(rng.integers(3))
    if kind == 0:
        sheet.arch(left - 0.2, 0, right + 0.2, height + 0.5, style.trim)
        sheet.arch(left, 0, right, height + 0.3, style.accent)
        sheet.arch(left + 0.15, height - 0.35, right - 0.15, height + 0.18, GLASS[1], 200)
    else:
        sheet.box(left - 0.2, 0, right + 0.2, height + 0.2, style.trim)
        sheet.box(left, 0, right, height, style.accent)
        sheet.box(left + 0.1, height - 0.45, right - 0.1, height - 0.1, GLASS[1], 200)
    if kind == 2:
        sheet.polygon(
            [(left - 0.4, height + 0.2), (right + 0.4, height + 0.2), (x, height + 0.75)], shade(style.trim, 0.92)
        )
    sheet.box(left + 0.14, 0.25, x - 0.06, height * 0.42, shade(style.accent, 0.78))
    sheet.box(x + 0.06, 0.25, right - 0.14, height * 0.42, shade(style.accent, 0.78))
    sheet.box(left - 0.3, 0, right + 0.3, 0.16, (170, 166, 160))
