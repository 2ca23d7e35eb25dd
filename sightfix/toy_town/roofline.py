"""Where a façade meets the sky: cornices, parapets, mansards, gables, chimneys, turrets."""

from collections.abc import Callable
from typing import Final

import numpy as np

from sightfix.toy_town.facade_style import FacadeStyle
from sightfix.toy_town.openings import GLASS
from sightfix.toy_town.sheet import Sheet, shade

TALLEST_M: Final = 5.5
"""No roof line rises higher above the eaves."""


def draw_roofline(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    """Draw what stands on top of a façade, from its eaves up."""
    _KINDS[style.roofline](sheet, style, style.eaves_m, rng)


def _cornice(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    sheet.box(0, eaves - 0.35, sheet.width_m, eaves, shade(style.trim, 0.92))
    for x in np.arange(0.2, sheet.width_m - 0.2, 0.6):
        sheet.box(x, eaves - 0.6, x + 0.22, eaves - 0.35, shade(style.trim, 0.8))
    sheet.box(0, eaves, sheet.width_m, eaves + 0.28, style.trim)


def _parapet(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    height = rng.uniform(0.6, 1.5)
    sheet.box(0, eaves, sheet.width_m, eaves + height, style.wall)
    sheet.box(0, eaves + height - 0.2, sheet.width_m, eaves + height, style.trim)
    if rng.random() < 0.5:
        third = sheet.width_m / 3
        sheet.box(third, eaves, 2 * third, eaves + height + 0.9, style.wall)
        sheet.box(third, eaves + height + 0.7, 2 * third, eaves + height + 0.9, style.trim)
        sheet.text(sheet.width_m / 2, eaves + height * 0.6, 0.7, third * 0.9, style.word, style.accent, 60)


def _balustrade(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    _cornice(sheet, style, eaves, rng)
    sheet.box(0, eaves + 0.28, sheet.width_m, eaves + 1.15, shade(style.roof, 0.7))
    for x in np.arange(0.1, sheet.width_m, 0.34):
        sheet.box(x, eaves + 0.28, x + 0.18, eaves + 1.0, style.trim)
    sheet.box(0, eaves + 0.98, sheet.width_m, eaves + 1.15, style.trim)
    for x in (0.0, sheet.width_m / 2 - 0.3, sheet.width_m - 0.6):
        sheet.box(x, eaves + 0.28, x + 0.6, eaves + 1.35, style.trim)
        sheet.ellipse(x + 0.3, eaves + 1.55, 0.22, 0.26, style.trim)


def _tiles(sheet: Sheet, style: FacadeStyle, x0: float, y0: float, x1: float, y1: float, lean: float) -> None:
    """A slope of roof tiles between two heights; its top is shorter by `lean` at each end."""
    sheet.polygon([(x0, y0), (x1, y0), (x1 - lean, y1), (x0 + lean, y1)], style.roof)
    for step, y in enumerate(np.arange(y0 + 0.25, y1, 0.35)):
        inset = lean * (y - y0) / (y1 - y0)
        sheet.box(x0 + inset, y, x1 - inset, y + 0.08, shade(style.roof, 0.8 if step % 2 else 1.12))


def _mansard(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    height = rng.uniform(2.4, 3.2)
    _tiles(sheet, style, 0, eaves, sheet.width_m, eaves + height, 0.35)
    _cornice(sheet, style, eaves, rng)
    dormers = max(1, int(sheet.width_m / rng.uniform(2.4, 4.0)))
    round_top = rng.random() < 0.5
    for step in range(dormers):
        x = (step + 0.5) * sheet.width_m / dormers
        shape = sheet.arch if round_top else sheet.box
        shape(x - 0.65, eaves + 0.35, x + 0.65, eaves + 2.1, style.trim)
        shape(x - 0.45, eaves + 0.5, x + 0.45, eaves + 1.9, GLASS[2], 230 if rng.random() < 0.4 else 0)
        sheet.box(x - 0.03, eaves + 0.5, x + 0.03, eaves + 1.9, style.frame)
    sheet.box(0.35, eaves + height - 0.12, sheet.width_m - 0.35, eaves + height, shade(style.roof, 0.6))


def _gable_face(sheet: Sheet, style: FacadeStyle, points: list[tuple[float, float]], eaves: float) -> None:
    sheet.polygon(points, style.wall)
    sheet.line(points, 0.22, style.trim)
    x, top = sheet.width_m / 2, max(y for _, y in points)
    if top - eaves > 1.8:
        radius = min(0.55, (top - eaves) * 0.2)
        y = eaves + (top - eaves) * 0.36
        sheet.ellipse(x, y, radius + 0.12, radius + 0.12, style.trim)
        sheet.ellipse(x, y, radius, radius, GLASS[0], 120)


def _rise(sheet: Sheet, rng: np.random.Generator) -> float:
    return float(min(TALLEST_M - 0.6, sheet.width_m * rng.uniform(0.28, 0.5)))


def _gable(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    width, rise = sheet.width_m, _rise(sheet, rng)
    _gable_face(sheet, style, [(0, eaves), (width / 2, eaves + rise), (width, eaves)], eaves)
    if style.timber:
        for x in (0.3, 0.5, 0.7):
            top = eaves + rise * (1 - abs(x - 0.5) * 2)
            sheet.box(width * x - 0.1, eaves, width * x + 0.1, top - 0.1, shade(style.accent, 0.5))


def _stepped_gable(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    width, rise, steps = sheet.width_m, _rise(sheet, rng), int(rng.integers(3, 6))
    half: list[tuple[float, float]] = []
    for step in range(steps):
        x = width / 2 * step / steps
        half += [(x, eaves + rise * step / (steps - 1)), (x, eaves + rise * (step + 1) / steps)]
    half = [(x, min(eaves + rise, y)) for x, y in half]
    points = [(0.0, eaves), *half, *[(width - x, y) for x, y in reversed(half)], (width, eaves)]
    _gable_face(sheet, style, points, eaves)


def _bell_gable(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    width, rise = sheet.width_m, _rise(sheet, rng)
    half = []
    for step in range(13):
        share = step / 12
        half.append((width / 2 * share, eaves + rise * (0.08 + 0.92 * share**2 * (3 - 2 * share))))
    points = [(0.0, eaves), *half, *[(width - x, y) for x, y in reversed(half)], (width, eaves)]
    _gable_face(sheet, style, points, eaves)
    sheet.box(width / 2 - 0.5, eaves + rise - 0.2, width / 2 + 0.5, eaves + rise + 0.1, style.trim)


def _twin_gables(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    width, rise = sheet.width_m, min(3.2, _rise(sheet, rng))
    _tiles(sheet, style, 0, eaves, width, eaves + rise * 0.7, 0.2)
    for left in (0.0, width / 2):
        points = [(left + 0.1, eaves), (left + width / 4, eaves + rise), (left + width / 2 - 0.1, eaves)]
        sheet.polygon(points, style.wall)
        sheet.line(points, 0.2, style.trim)
        sheet.box(left + width / 4 - 0.35, eaves + 0.3, left + width / 4 + 0.35, eaves + rise * 0.5, GLASS[2], 150)


def _eaves(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    _tiles(sheet, style, 0, eaves - 0.15, sheet.width_m, eaves + rng.uniform(1.2, 2.2), 0.15)
    sheet.box(0, eaves - 0.4, sheet.width_m, eaves - 0.15, shade(style.wall, 0.5))


def _shed_dormers(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    _eaves(sheet, style, eaves, rng)
    x0, x1 = sheet.width_m * 0.22, sheet.width_m * 0.78
    sheet.box(x0, eaves + 0.1, x1, eaves + 1.9, style.wall)
    panes = max(2, int((x1 - x0) / 0.9))
    for step in range(panes):
        x = x0 + (x1 - x0) * (step + 0.5) / panes
        sheet.box(x - 0.3, eaves + 0.4, x + 0.3, eaves + 1.6, style.frame)
        sheet.box(x - 0.22, eaves + 0.48, x + 0.22, eaves + 1.52, GLASS[0], 140 if step % 2 else 0)
    sheet.box(x0 - 0.3, eaves + 1.9, x1 + 0.3, eaves + 2.25, shade(style.roof, 0.75))


def _chimneys(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    for _ in range(int(rng.integers(1, 4))):
        x = rng.uniform(0.5, max(0.6, sheet.width_m - 1.5))
        top = eaves + rng.uniform(2.4, 3.6)
        sheet.box(x, eaves, x + 0.9, top, (146, 82, 66))
        sheet.box(x - 0.1, top - 0.25, x + 1.0, top, (110, 62, 52))
        for pot in (0.15, 0.55):
            sheet.box(x + pot, top, x + pot + 0.22, top + 0.4, (196, 116, 82))
    _eaves(sheet, style, eaves, rng)


def _turrets(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    _parapet(sheet, style, eaves, rng)
    width = min(2.2, sheet.width_m * 0.28)
    for x in (0.0, sheet.width_m - width) if rng.random() < 0.6 else (float(rng.choice([0.0, sheet.width_m - width])),):
        sheet.box(x, eaves, x + width, eaves + 2.2, style.wall)
        sheet.box(x + width * 0.3, eaves + 0.6, x + width * 0.7, eaves + 1.8, GLASS[2], 160)
        sheet.polygon(
            [(x - 0.1, eaves + 2.2), (x + width / 2, eaves + 5.0), (x + width + 0.1, eaves + 2.2)], style.roof
        )
        sheet.polygon(
            [(x + width * 0.55, eaves + 2.2), (x + width / 2, eaves + 5.0), (x + width + 0.1, eaves + 2.2)],
            shade(style.roof, 0.8),
        )


def _crenels(sheet: Sheet, style: FacadeStyle, eaves: float, rng: np.random.Generator) -> None:
    sheet.box(0, eaves, sheet.width_m, eaves + 0.5, shade(style.wall, 0.94))
    step = rng.uniform(0.8, 1.3)
    for x in np.arange(0, sheet.width_m, 2 * step):
        sheet.box(x, eaves + 0.5, min(x + step, sheet.width_m), eaves + 1.3, shade(style.wall, 0.94))
    sheet.box(0, eaves - 0.12, sheet.width_m, eaves + 0.08, style.trim)


_KINDS: Final[dict[str, Callable[[Sheet, FacadeStyle, float, np.random.Generator], None]]] = {
    "cornice": _cornice,
    "parapet": _parapet,
    "balustrade": _balustrade,
    "mansard": _mansard,
    "gable": _gable,
    "stepped gable": _stepped_gable,
    "bell gable": _bell_gable,
    "twin gables": _twin_gables,
    "eaves": _eaves,
    "shed dormers": _shed_dormers,
    "chimneys": _chimneys,
    "turrets": _turrets,
    "crenels": _crenels,
}
