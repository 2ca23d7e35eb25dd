"""What stands and drives in the streets: trees, lamps, kiosks, cars."""

from typing import Final

import numpy as np

from sightfix.toy_town.sheet import Sheet, shade

CARS: Final = 10
CAR_LENGTH_M: Final = 4.3
CAR_WIDTH_M: Final = 1.8
_CAR_HEIGHT_M: Final = 1.55

_PAINTS: Final = (
    (190, 40, 40), (40, 80, 160), (230, 230, 226), (40, 42, 46), (150, 156, 160),
    (220, 170, 40), (60, 120, 80), (120, 60, 40), (90, 150, 190), (240, 130, 60),
)  # fmt: skip
_GLASS: Final = (66, 84, 98)


def furniture_sheets(rng: np.random.Generator, scale: float) -> list[Sheet]:
    """Five trees, a lamp, a kiosk, a letter box, an advertising column and a fountain, in this order."""
    return [
        *(_tree(rng, scale) for _ in range(5)),
        _lamp(scale),
        _kiosk(scale),
        _letter_box(scale),
        _column(rng, scale),
        _fountain(scale),
    ]


def car_sheets(rng: np.random.Generator, scale: float) -> list[Sheet]:
    """Left side, right side, front and back of a car."""
    paint = _PAINTS[int(rng.integers(len(_PAINTS)))]
    van = bool(rng.random() < 0.25)
    sides = [_car_side(paint, scale, van, to_left=to_left) for to_left in (True, False)]
    return [*sides, _car_end(paint, scale, (255, 244, 214)), _car_end(paint, scale, (210, 30, 26))]


def _tree(rng: np.random.Generator, scale: float) -> Sheet:
    height, width = float(rng.uniform(5.0, 8.0)), float(rng.uniform(3.4, 5.0))
    sheet = Sheet(width, height, scale)
    sheet.box(width / 2 - 0.15, 0, width / 2 + 0.15, height * 0.5, (92, 70, 50))
    green = (int(rng.integers(50, 120)), int(rng.integers(100, 150)), int(rng.integers(40, 80)))
    for _ in range(60):
        x = float(rng.normal(width / 2, width * 0.18))
        y = float(rng.normal(height * 0.68, height * 0.13))
        radius = float(rng.uniform(0.3, 0.7))
        sheet.ellipse(x, min(y, height - radius), radius, radius * 0.9, shade(green, float(rng.uniform(0.65, 1.2))))
    return sheet


def _lamp(scale: float) -> Sheet:
    sheet = Sheet(0.9, 5.2, scale)
    sheet.box(0.39, 0, 0.51, 4.5, (44, 50, 52))
    sheet.box(0.3, 0, 0.6, 0.5, (44, 50, 52))
    sheet.polygon([(0.2, 4.5), (0.7, 4.5), (0.82, 5.0), (0.08, 5.0)], (250, 236, 190), 254)
    sheet.box(0.05, 4.98, 0.85, 5.15, (44, 50, 52))
    return sheet


def _kiosk(scale: float) -> Sheet:
    sheet = Sheet(2.8, 3.2, scale)
    sheet.box(0.2, 0, 2.6, 2.5, (40, 92, 76))
    sheet.box(0.4, 1.1, 2.4, 2.2, (236, 216, 160), 200)
    for x in np.arange(0.5, 2.3, 0.36):
        sheet.box(float(x), 1.2, float(x) + 0.26, 1.6, (200, 90 + int(x * 50), 80), 120)
    sheet.polygon([(0, 2.5), (2.8, 2.5), (1.4, 3.2)], (150, 50, 44))
    return sheet


def _letter_box(scale: float) -> Sheet:
    sheet = Sheet(0.7, 1.5, scale)
    sheet.box(0.3, 0, 0.4, 0.6, (60, 60, 60))
    sheet.box(0.05, 0.6, 0.65, 1.4, (238, 190, 30))
    sheet.box(0.15, 1.1, 0.55, 1.17, (40, 40, 40))
    return sheet


def _column(rng: np.random.Generator, scale: float) -> Sheet:
    sheet = Sheet(1.5, 3.6, scale)
    sheet.box(0.15, 0, 1.35, 3.0, (214, 206, 190))
    for x in (0.22, 0.78):
        for y in (0.6, 1.7):
            colour = tuple(int(channel) for channel in rng.integers(60, 240, 3))
            sheet.box(x, y, x + 0.5, y + 0.95, (colour[0], colour[1], colour[2]), 60)
    sheet.arch(0.05, 3.0, 1.45, 3.6, (50, 84, 74))
    return sheet


def _fountain(scale: float) -> Sheet:
    sheet = Sheet(6.0, 4.5, scale)
    sheet.box(0.2, 0, 5.8, 0.8, (190, 184, 172))
    sheet.box(0.5, 0.62, 5.5, 0.78, (120, 170, 200))
    sheet.box(2.6, 0.8, 3.4, 2.6, (176, 170, 158))
    sheet.ellipse(3.0, 2.6, 1.4, 0.3, (190, 184, 172))
    sheet.box(2.8, 2.6, 3.2, 3.6, (176, 170, 158))
    sheet.ellipse(3.0, 3.9, 0.4, 0.5, (98, 132, 118))
    return sheet


def _car_side(paint: tuple[int, int, int], scale: float, van: bool, *, to_left: bool) -> Sheet:
    sheet = Sheet(CAR_LENGTH_M, _CAR_HEIGHT_M, scale)

    def x(metres: float) -> float:
        return metres if to_left else CAR_LENGTH_M - metres

    def block(a: float, y0: float, b: float, y1: float, colour: tuple[int, int, int], glow: int = 0) -> None:
        sheet.box(min(x(a), x(b)), y0, max(x(a), x(b)), y1, colour, glow)

    block(0.05, 0.3, 4.25, 0.9, paint)
    roof = (
        [(0.5, 0.9), (0.9, 1.52), (4.1, 1.52), (4.2, 0.9)] if van else [(1.0, 0.9), (1.6, 1.5), (3.2, 1.5), (3.8, 0.9)]
    )
    sheet.polygon([(x(a), b) for a, b in roof], paint)
    glass = (
        [(1.0, 0.95), (1.25, 1.4), (2.4, 1.4), (2.4, 0.95)]
        if van
        else [(1.25, 0.95), (1.7, 1.4), (3.1, 1.4), (3.5, 0.95)]
    )
    sheet.polygon([(x(a), b) for a, b in glass], _GLASS)
    block(2.3, 0.35, 2.34, 0.9, shade(paint, 0.7))
    block(0.05, 0.66, 0.25, 0.8, (250, 240, 210), 254)
    block(4.08, 0.66, 4.25, 0.8, (200, 30, 26), 220)
    for wheel in (0.95, 3.4):
        sheet.ellipse(x(wheel), 0.34, 0.34, 0.33, (26, 26, 28))
        sheet.ellipse(x(wheel), 0.34, 0.17, 0.17, (150, 152, 156))
    return sheet


def _car_end(paint: tuple[int, int, int], scale: float, lamp: tuple[int, int, int]) -> Sheet:
    sheet = Sheet(CAR_WIDTH_M, _CAR_HEIGHT_M, scale)
    sheet.box(0.02, 0.28, 1.78, 0.92, paint)
    sheet.polygon([(0.12, 0.92), (0.32, 1.5), (1.48, 1.5), (1.68, 0.92)], paint)
    sheet.polygon([(0.24, 0.96), (0.4, 1.4), (1.4, 1.4), (1.56, 0.96)], _GLASS)
    for left in (0.1, 1.4):
        sheet.box(left, 0.62, left + 0.3, 0.8, lamp, 254)
    sheet.box(0.65, 0.4, 1.15, 0.54, (230, 230, 226))
    for left in (0.1, 1.4):
        sheet.box(left, 0.02, left + 0.3, 0.32, (26, 26, 28))
    return sheet
