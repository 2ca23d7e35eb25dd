"""The storey one walks past: shops with signs and awnings, cafés, house doors, arcades, garages, stoops."""

from collections.abc import Callable
from typing import Final

import numpy as np

from sightfix.toy_town.facade_style import FacadeStyle
from sightfix.toy_town.light import Rgb
from sightfix.toy_town.openings import GLASS, draw_door
from sightfix.toy_town.sheet import Sheet, shade

_GOODS: Final[tuple[Rgb, ...]] = (
    (220, 90, 60), (240, 190, 70), (120, 170, 90), (90, 130, 190), (230, 220, 200), (190, 110, 160), (150, 100, 60),
)  # fmt: skip


def draw_ground_floor(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    """Draw the lowest storey of a building over its wall."""
    sheet.box(0, 0, sheet.width_m, 0.35, shade(style.ground_wall, 0.6))
    _KINDS[style.ground_floor](sheet, style, rng)


def _display(sheet: Sheet, style: FacadeStyle, x0: float, x1: float, y1: float, rng: np.random.Generator) -> None:
    """A shop window with goods behind the glass."""
    sheet.box(x0 - 0.1, 0.4, x1 + 0.1, y1 + 0.1, style.accent)
    sheet.box(x0, 0.5, x1, y1, (104, 112, 112), 190)
    for _ in range(int((x1 - x0) * 3)):
        x, width = rng.uniform(x0, max(x0, x1 - 0.3)), rng.uniform(0.12, 0.35)
        goods = _GOODS[int(rng.integers(len(_GOODS)))]
        sheet.box(x, 0.55, min(x1, x + width), 0.55 + rng.uniform(0.2, 1.0), goods, 150)
    sheet.polygon([(x0, y1), (x0 + (x1 - x0) * 0.35, y1), (x0, y1 - (y1 - 0.5) * 0.6)], (150, 164, 172), 190)
    panes = max(1, round((x1 - x0) / 1.6))
    for step in range(1, panes):
        x = x0 + (x1 - x0) * step / panes
        sheet.box(x - 0.05, 0.5, x + 0.05, y1, style.accent)


def _sign(sheet: Sheet, style: FacadeStyle, x0: float, x1: float, foot: float, height: float, word: str) -> None:
    sheet.box(x0, foot, x1, foot + height, style.sign, 70)
    sheet.box(x0, foot, x1, foot + 0.06, shade(style.sign, 0.6))
    sheet.text((x0 + x1) / 2, foot + height / 2, height * 0.78, (x1 - x0) * 0.9, word, style.sign_text, 200)


def _awning(sheet: Sheet, style: FacadeStyle, x0: float, x1: float, top: float) -> None:
    assert style.awning is not None
    stripes = max(3, round((x1 - x0) / 0.45))
    width = (x1 - x0) / stripes
    for step in range(stripes):
        colour = style.awning[step % 2]
        x = x0 + step * width
        sheet.box(x, top - 0.75, x + width, top, colour)
        sheet.ellipse(x + width / 2, top - 0.75, width / 2, 0.16, shade(colour, 0.88))
    sheet.box(x0, top - 0.08, x1, top, shade(style.awning[0], 0.7))


def _shop_front(sheet: Sheet, style: FacadeStyle, x0: float, x1: float, word: str, rng: np.random.Generator) -> None:
    top = style.ground_m - 1.15
    width = x1 - x0
    sheet.box(x0, 0, x1, style.ground_m - 0.2, style.ground_wall)
    sheet.box(x0, 0, x1, 0.4, shade(style.accent, 0.7))
    door = x0 + width * (0.5, 0.2, 0.8)[int(rng.integers(3))] if width > 3 else x1 - 0.8
    for left, right in ((x0 + 0.3, door - 0.65), (door + 0.65, x1 - 0.3)):
        if right - left > 0.6:
            _display(sheet, style, left, right, top, rng)
    sheet.box(door - 0.55, 0, door + 0.55, top + 0.1, shade(style.accent, 0.75))
    sheet.box(door - 0.38, 0.3, door + 0.38, top - 0.1, GLASS[1], 160)
    _sign(sheet, style, x0 + 0.1, x1 - 0.1, top + 0.18, 0.72, word)
    if style.awning:
        _awning(sheet, style, x0 + 0.15, x1 - 0.15, top + 0.2)


def _shop(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    _shop_front(sheet, style, 0.25, sheet.width_m - 0.25, style.word, rng)


def _double_shop(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    middle = sheet.width_m * rng.uniform(0.42, 0.58)
    _shop_front(sheet, style, 0.25, middle - 0.2, style.word, rng)
    _shop_front(sheet, style, middle + 0.2, sheet.width_m - 0.25, style.word[::-1], rng)


def _cafe(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    _shop_front(sheet, style, 0.25, sheet.width_m - 0.25, "CAFE", rng)
    for x in np.arange(1.2, sheet.width_m - 1.2, 2.1):
        sheet.box(x - 0.03, 0, x + 0.03, 1.9, (90, 84, 80))
        sheet.box(x - 0.45, 0.68, x + 0.45, 0.76, (150, 110, 80))
        for side in (-0.55, 0.45):
            sheet.box(x + side, 0, x + side + 0.1, 0.85, style.sign)
        sheet.polygon([(x - 0.95, 1.75), (x + 0.95, 1.75), (x, 2.35)], style.sign)
        sheet.polygon([(x - 0.3, 1.75), (x + 0.3, 1.75), (x, 2.35)], style.sign_text)


def _house(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    bays = max(1, int(sheet.width_m / style.bay_m))
    margin = (sheet.width_m - bays * style.bay_m) / 2
    door_bay = int(rng.integers(bays))
    for bay in range(bays):
        x = margin + (bay + 0.5) * style.bay_m
        if bay == door_bay:
            draw_door(sheet, style, x, min(1.2, style.bay_m * 0.6), 2.4, rng)
            continue
        half = style.bay_m * style.window_w / 2
        top = style.ground_m - 0.8
        sheet.box(x - half - 0.12, 1.0, x + half + 0.12, top + 0.14, style.trim)
        sheet.box(x - half, 1.1, x + half, top, style.frame)
        lit = 230 if rng.random() < 0.5 else 0
        sheet.box(x - half + 0.08, 1.18, x + half - 0.08, top - 0.08, GLASS[int(rng.integers(3))], lit)
        sheet.box(x - 0.03, 1.18, x + 0.03, top, style.frame)


def _arcade(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    arches = max(1, round(sheet.width_m / rng.uniform(2.2, 3.4)))
    width = sheet.width_m / arches
    sheet.box(0, 0, sheet.width_m, style.ground_m - 0.1, style.ground_wall)
    for step in range(arches):
        x0, x1 = step * width + 0.28, (step + 1) * width - 0.28
        sheet.arch(x0 - 0.14, 0, x1 + 0.14, style.ground_m - 0.4, style.trim)
        sheet.arch(x0, 0, x1, style.ground_m - 0.55, (58, 52, 52), 60)
        sheet.box(x0 + 0.3, 0, x1 - 0.3, style.ground_m * 0.5, (92, 80, 70), 130)
    sheet.box(0, style.ground_m - 0.25, sheet.width_m, style.ground_m, style.trim)


def _garage(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    doors = max(1, int(sheet.width_m / 3.6))
    width = sheet.width_m / doors
    for step in range(doors):
        x0, x1 = step * width + 0.5, (step + 1) * width - 0.5
        if step == doors - 1 and x1 - x0 > 1.2:
            draw_door(sheet, style, (x0 + x1) / 2, 1.1, 2.3, rng)
            continue
        sheet.box(x0 - 0.12, 0, x1 + 0.12, 2.9, style.trim)
        sheet.box(x0, 0, x1, 2.75, style.accent)
        for row in range(1, 6):
            sheet.box(x0, row * 0.46, x1, row * 0.46 + 0.06, shade(style.accent, 0.7))
    sheet.text(sheet.width_m / 2, 3.25, 0.5, sheet.width_m * 0.6, "GARAGE", style.trim)


def _stoop(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    """A raised ground floor with steps and cellar windows."""
    _house(sheet, style, rng)
    x = sheet.width_m * rng.uniform(0.25, 0.75)
    sheet.box(0, 0.35, sheet.width_m, 0.95, shade(style.ground_wall, 0.8))
    for cellar in np.arange(1.0, sheet.width_m - 1.0, 2.4):
        sheet.box(cellar, 0.42, cellar + 0.7, 0.8, (60, 62, 66))
    for step in range(5):
        sheet.box(
            x - 1.0 + step * 0.08,
            0,
            x + 1.0 - step * 0.08,
            0.19 * (step + 1),
            shade((186, 180, 170), 0.8 + 0.06 * step),
        )
    sheet.box(x - 0.55, 0.95, x + 0.55, 3.05, style.accent)
    sheet.box(x - 0.4, 2.5, x + 0.4, 2.9, GLASS[1], 220)


_KINDS: Final[dict[str, Callable[[Sheet, FacadeStyle, np.random.Generator], None]]] = {
    "shop": _shop,
    "double shop": _double_shop,
    "cafe": _cafe,
    "house": _house,
    "arcade": _arcade,
    "garage": _garage,
    "stoop": _stoop,
}
