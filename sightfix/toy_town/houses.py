"""Houses: the chance choices that make one unlike the next, its street side, and its blind sides and back."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from sightfix.toy_town.drawing import Rgb, Sheet, shade

ROOF_M: Final = 4.5
"""No roof rises higher above the eaves."""

_Choice = TypeVar("_Choice")

# fmt: off
_WALLS: Final[dict[str, tuple[Rgb, ...]]] = {
    "plaster": (
        (238, 222, 182), (226, 172, 112), (208, 116, 86), (238, 190, 186), (152, 186, 208), (92, 132, 166), (128, 164, 128),
        (78, 118, 98), (206, 196, 180), (246, 242, 232), (168, 62, 56), (240, 202, 96), (112, 92, 128), (64, 80, 102),
        (190, 156, 196), (116, 194, 184), (232, 144, 92), (218, 214, 132),
    ),
    "brick": ((156, 76, 60), (126, 86, 66), (200, 166, 112), (94, 66, 66), (216, 208, 198), (178, 96, 66), (110, 52, 50)),
    "stone": ((200, 190, 170), (168, 162, 152), (216, 200, 160), (142, 140, 138), (188, 164, 150), (226, 222, 212)),
    "boards": ((96, 140, 172), (188, 70, 60), (234, 228, 210), (88, 110, 88), (238, 190, 92), (60, 66, 72), (196, 152, 112)),
    "panels": ((182, 180, 174), (206, 204, 198), (134, 142, 148), (190, 150, 120), (108, 128, 132), (170, 206, 190)),
}
_MATERIALS: Final = ("plaster",) * 8 + ("brick",) * 6 + ("stone",) * 3 + ("boards",) * 3 + ("panels",) * 3
_TRIMS: Final[tuple[Rgb, ...]] = (
    (246, 244, 238), (222, 210, 186), (92, 88, 86), (60, 52, 48), (182, 170, 156), (250, 250, 250), (196, 92, 66),
)
_ACCENTS: Final[tuple[Rgb, ...]] = (
    (44, 88, 70), (150, 44, 40), (40, 66, 118), (90, 52, 36), (30, 34, 40), (222, 168, 60), (66, 132, 150), (198, 94, 110),
    (104, 142, 70), (236, 232, 222), (96, 60, 110), (230, 110, 50),
)
_ROOFS: Final[tuple[Rgb, ...]] = (
    (176, 84, 58), (148, 66, 52), (84, 90, 102), (62, 66, 74), (120, 96, 78), (94, 134, 120), (204, 120, 78), (70, 58, 60),
)
_GLASS: Final[tuple[Rgb, ...]] = ((70, 88, 106), (92, 116, 136), (54, 64, 76), (120, 146, 164))
_GOODS: Final[tuple[Rgb, ...]] = (
    (226, 92, 60), (244, 190, 64), (60, 130, 170), (236, 226, 206), (70, 150, 110), (120, 70, 130), (34, 44, 66),
)
_WORDS: Final = (
    "BAKERY", "CAFE", "BOOKS", "FISH", "TEA", "HOTEL", "FLOWERS", "CHEESE", "TOYS", "RADIO", "BANK", "POST", "WINE", "SHOES",
    "HATS", "MUSIC", "CINEMA", "BAR", "PIZZA", "FRUIT", "BIKES", "TAILOR", "GALLERY", "SOUP", "LAMPS", "MAPS",
)
_WINDOWS: Final = ("sash", "arched", "paired", "round", "pointed", "tall")
_GROUND_FLOORS: Final = ("shop", "shop", "shop", "dwelling", "dwelling", "arcade", "arcade")
_ROOFLINES: Final = ("cornice", "parapet", "mansard", "gable", "stepped gable", "eaves")
_DETAILS: Final = {
    "shutters": 0.3, "quoins": 0.25, "bands": 0.45, "sills": 0.6, "awning": 0.55, "balconies": 0.35,
}
# fmt: on


@dataclass(frozen=True, slots=True)
class House:
    """The looks of one house; lengths in metres.

    Attributes:
        material, wall: of the walls, and their colour.
        trim, accent, roof, sign: colours of window surrounds, of doors and shutters, of tiles, of the shop's sign.
        frame: colour of window frames.
        storeys, ground_m, storey_m: how many, and the height of the lowest and of each of the others.
        bay_m: width of one window axis.
        window: its shape. window_w, window_h: its shares of bay and storey. panes: columns and rows.
        ground_floor: ``shop``, ``dwelling`` or ``arcade``. word: on the shop's sign.
        roofline: what stands on the eaves.
        details: ornaments that it has.
    """

    material: str
    wall: Rgb
    trim: Rgb
    accent: Rgb
    roof: Rgb
    frame: Rgb
    sign: Rgb
    storeys: int
    ground_m: float
    storey_m: float
    bay_m: float
    window: str
    window_w: float
    window_h: float
    panes: tuple[int, int]
    ground_floor: str
    word: str
    roofline: str
    details: frozenset[str]

    @property
    def eaves_m(self) -> float:
        """Height of the wall without the roof."""
        return self.ground_m + (self.storeys - 1) * self.storey_m


def random_house(rng: np.random.Generator) -> House:
    """A house of two to five storeys."""
    material = _pick(rng, _MATERIALS)
    return House(
        material=material,
        wall=_tinted(rng, _pick(rng, _WALLS[material])),
        trim=_pick(rng, _TRIMS),
        accent=_pick(rng, _ACCENTS),
        roof=_tinted(rng, _pick(rng, _ROOFS)),
        frame=_pick(rng, _TRIMS),
        sign=_tinted(rng, _pick(rng, _ACCENTS)),
        storeys=int(rng.integers(2, 6)),
        ground_m=float(rng.uniform(3.5, 4.5)),
        storey_m=float(rng.uniform(2.8, 3.6)),
        bay_m=float(rng.uniform(1.7, 3.4)),
        window=_pick(rng, _WINDOWS),
        window_w=float(rng.uniform(0.40, 0.66)),
        window_h=float(rng.uniform(0.48, 0.74)),
        panes=(int(rng.integers(1, 4)), int(rng.integers(1, 4))),
        ground_floor=_pick(rng, _GROUND_FLOORS),
        word=_pick(rng, _WORDS),
        roofline=_pick(rng, _ROOFLINES),
        details=frozenset(detail for detail, chance in _DETAILS.items() if rng.random() < chance),
    )


def _pick(rng: np.random.Generator, choices: Sequence[_Choice]) -> _Choice:
    return choices[int(rng.integers(len(choices)))]


def _tinted(rng: np.random.Generator, colour: Rgb) -> Rgb:
    red, green, blue = np.clip(np.array(colour) * rng.uniform(0.9, 1.06) + rng.integers(-10, 11, 3), 0, 255).astype(int)
    return int(red), int(green), int(blue)


def draw_facade(house: House, width_m: float, scale: float, rng: np.random.Generator) -> Sheet:
    """The street side of a house.

    Args:
        house: its looks.
        width_m: of the wall.
        scale: pixels per metre.
        rng: which windows are lit, what the shop sells.

    Returns:
        a sheet whose outline is the roof line.
    """
    sheet = Sheet(width_m, house.eaves_m + ROOF_M, scale)
    sheet.masonry(0, house.eaves_m, house.material, house.wall, rng)
    _draw_ornaments(sheet, house)
    _draw_windows(sheet, house, rng)
    {"shop": _draw_shop, "dwelling": _draw_dwelling, "arcade": _draw_arcade}[house.ground_floor](sheet, house, rng)
    _draw_roofline(sheet, house, rng)
    return sheet


def draw_side(house: House, width_m: float, scale: float, rng: np.random.Generator) -> Sheet:
    """A wall away from the street: with small windows and a flat top."""
    sheet = Sheet(width_m, house.eaves_m + 0.3, scale)
    sheet.masonry(0, house.eaves_m, house.material, shade(house.wall, 0.93), rng)
    for storey in range(house.storeys - 1):
        y = house.ground_m + storey * house.storey_m + 0.9
        for x in np.arange(1.2, width_m - 1.4, 3 * house.window_w + 1.2):
            sheet.box(x - 0.06, y - 0.06, x + 0.76, y + 1.26, house.trim)
            sheet.box(x, y, x + 0.7, y + 1.2, _GLASS[0], 230 if rng.random() < 0.3 else 0)
    sheet.box(0, house.eaves_m, width_m, house.eaves_m + 0.3, shade(house.trim, 0.9))
    return sheet


def _draw_ornaments(sheet: Sheet, house: House) -> None:
    width = sheet.width_m
    if "bands" in house.details:
        for storey in range(house.storeys - 1):
            floor = house.ground_m + storey * house.storey_m
            sheet.box(0, floor - 0.08, width, floor + 0.12, house.trim)
    if "quoins" in house.details:
        for step, y in enumerate(np.arange(0.3, house.eaves_m - 0.5, 0.5)):
            length = 0.75 if step % 2 else 0.45
            for x in (0.0, width - length):
                sheet.box(x, y, x + length, y + 0.44, house.trim)


def _draw_windows(sheet: Sheet, house: House, rng: np.random.Generator) -> None:
    """One of four states in each bay of each upper storey: two dark ones, one lit at dusk, one dimly lit."""
    states = [_window(house, sheet.scale, _GLASS[state], glow) for state, glow in enumerate((0, 0, 255, 120))]
    bays = max(1, int((sheet.width_m - 0.3) / house.bay_m))
    margin = (sheet.width_m - bays * house.bay_m) / 2
    for storey in range(house.storeys - 1):
        floor = house.ground_m + storey * house.storey_m
        for bay in range(bays):
            x = margin + bay * house.bay_m
            sheet.stamp(states[int(rng.choice(4, p=(0.34, 0.24, 0.27, 0.15)))], x, floor)
            if "balconies" in house.details and (bay + storey) % 2 == 0:
                _draw_balcony(sheet, house, x + 0.15, x + house.bay_m - 0.15, floor + 0.1)


def _draw_balcony(sheet: Sheet, house: House, x0: float, x1: float, floor: float) -> None:
    rail = shade(house.accent, 0.8)
    sheet.box(x0, floor - 0.16, x1, floor + 0.02, shade(house.trim, 0.95))
    sheet.box(x0, floor + 0.92, x1, floor + 1.02, rail)
    for x in np.linspace(x0, x1 - 0.06, max(4, int((x1 - x0) / 0.22))):
        sheet.box(x, floor, x + 0.06, floor + 0.95, rail)


def _window(house: House, scale: float, glass: Rgb, glow: int) -> Sheet:
    """A window: one bay wide, one storey high, transparent around it."""
    tile = Sheet(house.bay_m, house.storey_m, scale)
    width, height = house.bay_m * house.window_w, house.storey_m * house.window_h
    middle, foot = house.bay_m / 2, (house.storey_m - height) * 0.55
    left, right, top = middle - width / 2, middle + width / 2, foot + height
    if house.window == "sash":
        tile.box(left - 0.14, foot, right + 0.14, top + 0.24, house.trim)
        _draw_panes(tile, house, left, foot, right, top, glass, glow)
    elif house.window == "tall":
        foot, top = 0.12, house.storey_m - 0.35
        tile.polygon([(left - 0.2, top + 0.1), (right + 0.2, top + 0.1), (middle, top + 0.32)], house.trim)
        tile.box(left - 0.1, foot, right + 0.1, top + 0.12, house.trim)
        _draw_panes(tile, house, left, foot, right, top, glass, glow)
    elif house.window == "paired":
        tile.box(left - 0.08, foot - 0.05, right + 0.08, top + 0.12, house.trim)
        _draw_panes(tile, house, left, foot, middle - 0.08, top, glass, glow)
        _draw_panes(tile, house, middle + 0.08, foot, right, top, glass, glow)
    elif house.window == "arched":
        for edge, colour, shine in ((-0.16, house.trim, 0), (0.0, house.frame, 0), (0.07, glass, glow)):
            tile.arch(left + edge, foot, right - edge, top - edge, colour, shine)
    elif house.window == "pointed":
        for edge, colour, shine in ((-0.15, house.trim, 0), (0.06, glass, glow)):
            spring = [(right - edge, top - width * 0.75), (middle, top - edge), (left + edge, top - width * 0.75)]
            tile.polygon([(left + edge, foot), (right - edge, foot), *spring], colour, shine)
    else:
        radius, y = min(width, height) / 2, (foot + top) / 2
        for edge, colour, shine in ((0.14, house.trim, 0), (0.0, house.frame, 0), (-0.08, glass, glow)):
            tile.ellipse(middle, y, radius + edge, radius + edge, colour, shine)
    if house.window in ("arched", "pointed", "round"):
        tile.box(middle - 0.03, foot, middle + 0.03, top - 0.1, house.frame)
    if "shutters" in house.details and house.window in ("sash", "tall"):
        leaf = min(width * 0.5, left - 0.05)
        for x in (left - leaf, right):
            tile.box(x, foot, x + leaf, top, house.accent)
            tile.box(x + leaf * 0.2, foot + height * 0.1, x + leaf * 0.8, top - height * 0.1, shade(house.accent, 0.8))
    if "sills" in house.details:
        tile.box(left - 0.12, foot - 0.14, right + 0.12, foot, shade(house.trim, 1.04))
    return tile


def _draw_panes(tile: Sheet, house: House, x0: float, y0: float, x1: float, y1: float, glass: Rgb, glow: int) -> None:
    """Glass in a frame, with a reflection and glazing bars."""
    edge = 0.07
    tile.box(x0, y0, x1, y1, house.frame)
    tile.box(x0 + edge, y0 + edge, x1 - edge, y1 - edge, glass, glow)
    corner = (x0 + edge, y1 - edge)
    reflection = [corner, (x0 + (x1 - x0) * 0.55, y1 - edge), (x0 + edge, (y0 + y1) / 2)]
    tile.polygon(reflection, shade(glass, 1.22), glow)
    columns, rows = house.panes
    for x in np.linspace(x0, x1, columns + 1)[1:-1]:
        tile.box(x - 0.03, y0, x + 0.03, y1, house.frame)
    for y in np.linspace(y0, y1, rows + 1)[1:-1]:
        tile.box(x0, y - 0.03, x1, y + 0.03, house.frame)


def _draw_door(sheet: Sheet, house: House, x: float, width: float) -> None:
    left, right, height = x - width / 2, x + width / 2, 2.4
    sheet.box(left - 0.2, 0, right + 0.2, height + 0.2, house.trim)
    sheet.box(left, 0, right, height, house.accent)
    sheet.box(left + 0.1, height - 0.45, right - 0.1, height - 0.1, _GLASS[1], 200)
    sheet.box(left + 0.14, 0.25, right - 0.14, height * 0.42, shade(house.accent, 0.78))


def _draw_shop(sheet: Sheet, house: House, rng: np.random.Generator) -> None:
    """One or two shops: a door between display windows, a sign and perhaps an awning above."""
    words = (house.word, _pick(rng, _WORDS))[: 2 if sheet.width_m > 9 else 1]
    width = sheet.width_m / len(words)
    top = house.ground_m - 1.15
    for number, word in enumerate(words):
        x0, x1 = number * width + 0.1, (number + 1) * width - 0.1
        sheet.box(x0, 0, x1, house.ground_m - 0.2, shade(house.accent, 0.8))
        door = x0 + width * rng.uniform(0.2, 0.8)
        for left, right in ((x0 + 0.3, door - 0.65), (door + 0.65, x1 - 0.3)):
            if right - left > 0.6:
                _draw_display(sheet, left, right, top, rng)
        sheet.box(door - 0.38, 0.3, door + 0.38, top - 0.1, _GLASS[1], 160)
        sheet.box(x0, top + 0.18, x1, top + 0.9, house.sign, 70)
        ink = (250, 246, 232) if sum(house.sign) < 420 else (40, 32, 30)
        sheet.text((x0 + x1) / 2, top + 0.54, 0.5, (x1 - x0) * 0.9, word, ink, 200)
        if "awning" in house.details:
            stripes = max(3, round(width / 0.45))
            for step, x in enumerate(np.linspace(x0, x1, stripes, endpoint=False)):
                half = (x1 - x0) / stripes / 2
                colour = house.sign if step % 2 else (246, 242, 232)
                sheet.box(x, top - 0.55, x + 2 * half, top + 0.2, colour)
                sheet.ellipse(x + half, top - 0.55, half, 0.16, shade(colour, 0.88))


def _draw_display(sheet: Sheet, x0: float, x1: float, y1: float, rng: np.random.Generator) -> None:
    """A shop window with goods behind the glass."""
    sheet.box(x0, 0.5, x1, y1, (104, 112, 112), 190)
    for x in rng.uniform(x0, x1 - 0.3, int((x1 - x0) * 3)):
        goods = _pick(rng, _GOODS)
        sheet.box(x, 0.55, min(x1, x + rng.uniform(0.12, 0.35)), 0.55 + rng.uniform(0.2, 1.0), goods, 150)
    sheet.polygon([(x0, y1), (x0 + (x1 - x0) * 0.35, y1), (x0, y1 * 0.4 + 0.3)], (150, 164, 172), 190)


def _draw_dwelling(sheet: Sheet, house: House, rng: np.random.Generator) -> None:
    bays = max(1, int(sheet.width_m / house.bay_m))
    margin = (sheet.width_m - bays * house.bay_m) / 2
    door = int(rng.integers(bays))
    sheet.box(0, 0, sheet.width_m, 0.6, shade(house.wall, 0.6))
    for bay in range(bays):
        x, half, top = margin + (bay + 0.5) * house.bay_m, house.bay_m * house.window_w / 2, house.ground_m - 0.8
        if bay == door:
            _draw_door(sheet, house, x, min(1.2, house.bay_m * 0.6))
        else:
            sheet.box(x - half - 0.12, 1.0, x + half + 0.12, top + 0.14, house.trim)
            lit = 230 if rng.random() < 0.5 else 0
            _draw_panes(sheet, house, x - half, 1.1, x + half, top, _pick(rng, _GLASS), lit)


def _draw_arcade(sheet: Sheet, house: House, rng: np.random.Generator) -> None:
    arches = max(1, round(sheet.width_m / rng.uniform(2.2, 3.4)))
    width = sheet.width_m / arches
    for x0 in np.arange(arches) * width + 0.28:
        x1, top = x0 + width - 0.56, house.ground_m - 0.55
        sheet.arch(x0 - 0.14, 0, x1 + 0.14, top + 0.15, house.trim)
        sheet.arch(x0, 0, x1, top, (58, 52, 52), 60)
        sheet.box(x0 + 0.3, 0, x1 - 0.3, house.ground_m * 0.5, (92, 80, 70), 130)


def _draw_roofline(sheet: Sheet, house: House, rng: np.random.Generator) -> None:
    """What stands on top of a façade, from its eaves up."""
    eaves, width = house.eaves_m, sheet.width_m
    rise = min(ROOF_M - 0.3, width * rng.uniform(0.28, 0.45))
    if house.roofline == "eaves":
        for x in rng.uniform(0.5, width - 1.5, int(rng.integers(4))):
            sheet.box(x, eaves, x + 0.9, eaves + 3.0, (146, 82, 66))
            sheet.box(x - 0.1, eaves + 2.75, x + 1.0, eaves + 3.0, (110, 62, 52))
        _draw_tiles(sheet, house, rng.uniform(1.2, 2.2))
        sheet.box(0, eaves - 0.4, width, eaves - 0.15, shade(house.wall, 0.5))
    elif house.roofline == "mansard":
        _draw_tiles(sheet, house, rng.uniform(2.4, 3.2))
        dormers = max(1, int(width / rng.uniform(2.4, 4.0)))
        for x in (np.arange(dormers) + 0.5) * width / dormers:
            sheet.box(x - 0.65, eaves + 0.35, x + 0.65, eaves + 2.1, house.trim)
            sheet.box(x - 0.45, eaves + 0.5, x + 0.45, eaves + 1.9, _GLASS[2], 230 if rng.random() < 0.4 else 0)
    elif house.roofline in ("gable", "stepped gable"):
        steps = int(rng.integers(3, 6)) if house.roofline == "stepped gable" else 1
        half = [(0.0, eaves)]
        for step in range(steps):
            x, y = width / 2 * step / steps, eaves + rise * (step + 1) / steps
            half += [(x, y), (width / 2 * (step + 1) / steps, y)] if steps > 1 else [(width / 2, y)]
        outline = [*half, *[(width - x, y) for x, y in reversed(half)]]
        sheet.polygon(outline, house.wall)
        sheet.line(outline, 0.22, house.trim)
        sheet.ellipse(width / 2, eaves + rise * 0.36, 0.6, 0.6, house.trim)
        sheet.ellipse(width / 2, eaves + rise * 0.36, 0.45, 0.45, _GLASS[0], 120)
    elif house.roofline == "parapet":
        third = width / 3
        sheet.box(0, eaves, width, eaves + rise / 3, house.wall)
        sheet.box(0, eaves + rise / 3 - 0.2, width, eaves + rise / 3, house.trim)
        sheet.box(third, eaves, 2 * third, eaves + rise / 2, house.wall)
        sheet.box(third, eaves + rise / 2 - 0.2, 2 * third, eaves + rise / 2, house.trim)
    else:
        sheet.box(0, eaves - 0.35, width, eaves + 0.28, house.trim)
        for x in np.arange(0.2, width - 0.2, 0.6):
            sheet.box(x, eaves - 0.6, x + 0.22, eaves - 0.1, shade(house.trim, 0.8))


def _draw_tiles(sheet: Sheet, house: House, height: float) -> None:
    """A slope of roof tiles on the eaves."""
    eaves, width, lean = house.eaves_m, sheet.width_m, 0.15
    top = eaves + height
    sheet.polygon([(0, eaves - 0.15), (width, eaves - 0.15), (width - lean, top), (lean, top)], house.roof)
    for step, y in enumerate(np.arange(eaves + 0.1, top, 0.35)):
        sheet.box(lean, y, width - lean, y + 0.08, shade(house.roof, 0.8 if step % 2 else 1.12))
