"""Façades: the street side of a building, and its blind sides and back."""

import math

import numpy as np

from sightfix.toy_town.facade_style import FacadeStyle, pick
from sightfix.toy_town.ground_floor import draw_ground_floor
from sightfix.toy_town.materials import wall_pattern
from sightfix.toy_town.openings import draw_balcony, window_sheets
from sightfix.toy_town.roofline import TALLEST_M, draw_roofline
from sightfix.toy_town.sheet import Sheet, shade


def draw_facade(style: FacadeStyle, width_m: float, scale: float, rng: np.random.Generator) -> Sheet:
    """The street side of a building.

    Args:
        style: of the building.
        width_m: of the wall.
        scale: pixels per metre.
        rng: which windows are lit, what the shop sells.

    Returns:
        a sheet whose outline is the roof line.
    """
    sheet = Sheet(width_m, style.eaves_m + TALLEST_M, scale, style.wall)
    _draw_wall(sheet, style, rng)
    if style.timber:
        _draw_timber(sheet, style)
    _draw_windows(sheet, style, rng)
    _draw_ornaments(sheet, style)
    draw_ground_floor(sheet, style, rng)
    draw_roofline(sheet, style, rng)
    if style.ivy:
        _draw_ivy(sheet, style, rng)
    return sheet


def _draw_wall(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    size = (sheet.colour.width, math.ceil(style.eaves_m * sheet.scale) + 1)
    sheet.pattern(0, style.eaves_m, wall_pattern(style.material, size, sheet.scale, style.wall, style.joint, rng))
    if style.ground_wall != style.wall:
        ground = wall_pattern("plaster", size, sheet.scale, style.ground_wall, style.joint, rng)
        sheet.pattern(0, style.ground_m - 0.1, ground[-round(style.ground_m * sheet.scale) :])


def _draw_windows(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    bays = max(1, int((sheet.width_m - 0.3) / style.bay_m))
    margin = (sheet.width_m - bays * style.bay_m) / 2
    states = window_sheets(sheet, style)
    for storey in range(style.storeys - 1):
        floor = style.ground_m + storey * style.storey_m
        for bay in range(bays):
            state = int(rng.choice(4, p=(0.34, 0.24, 0.27, 0.15)))
            sheet.stamp(states[state], margin + bay * style.bay_m, floor)
            if _has_balcony(style, storey, bay, bays):
                x = margin + bay * style.bay_m
                draw_balcony(sheet, style, x + 0.15, x + style.bay_m - 0.15, floor + 0.1)


def _has_balcony(style: FacadeStyle, storey: int, bay: int, bays: int) -> bool:
    if style.balconies == "every":
        return storey % 2 == 0
    if style.balconies == "middle":
        return abs(bay - (bays - 1) / 2) < 1
    return style.balconies == "staggered" and (bay + storey) % 2 == 0


def _draw_ornaments(sheet: Sheet, style: FacadeStyle) -> None:
    width, eaves = sheet.width_m, style.eaves_m
    if style.bands:
        for storey in range(style.storeys):
            y = style.ground_m + storey * style.storey_m - 0.08
            sheet.box(0, y, width, y + 0.2, style.trim)
    if style.quoins:
        for step, y in enumerate(np.arange(0.3, eaves - 0.5, 0.5)):
            length = 0.75 if step % 2 else 0.45
            sheet.box(0, y, length, y + 0.44, style.trim)
            sheet.box(width - length, y, width, y + 0.44, style.trim)
    if style.pilasters:
        for x in (0.0, width / 2 - 0.25, width - 0.5):
            sheet.box(x, style.ground_m, x + 0.5, eaves, shade(style.trim, 0.96))
            sheet.box(x + 0.38, style.ground_m, x + 0.5, eaves, shade(style.trim, 0.75))
            sheet.box(x - 0.1, eaves - 0.7, x + 0.6, eaves - 0.45, style.trim)


def _draw_timber(sheet: Sheet, style: FacadeStyle) -> None:
    """Half-timbering: posts, rails and braces above the ground floor."""
    beam = shade(style.accent, 0.45) if sum(style.wall) > 330 else (236, 226, 206)
    posts = max(3, round(sheet.width_m / 1.6))
    for storey in range(style.storeys - 1):
        y0 = style.ground_m + storey * style.storey_m
        y1 = y0 + style.storey_m
        sheet.box(0, y0 - 0.1, sheet.width_m, y0 + 0.14, beam)
        for step in range(posts + 1):
            x = (sheet.width_m - 0.2) * step / posts
            sheet.box(x, y0, x + 0.2, y1, beam)
            if (step + storey) % 3 == 0 and step < posts:
                x1 = (sheet.width_m - 0.2) * (step + 1) / posts
                sheet.line([(x + 0.1, y0), (x1 + 0.1, y1)], 0.18, beam)


def _draw_ivy(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    x0 = rng.uniform(0, sheet.width_m * 0.6)
    for _ in range(90):
        y = rng.uniform(0, style.eaves_m * 0.85)
        x = x0 + rng.normal(0, 0.9) * (0.5 + y / style.eaves_m)
        green = shade((62, 104, 54), rng.uniform(0.7, 1.25))
        sheet.ellipse(float(x), float(y), rng.uniform(0.15, 0.4), rng.uniform(0.12, 0.35), green)


def draw_side(style: FacadeStyle, width_m: float, scale: float, rng: np.random.Generator) -> Sheet:
    """A wall without street: blind or with a few small windows, sometimes with a painting; its top is flat."""
    sheet = Sheet(width_m, style.eaves_m + 0.3, scale, style.wall)
    size = (sheet.colour.width, math.ceil(style.eaves_m * sheet.scale) + 1)
    material = style.material if style.material in ("brick", "boards", "panels") else "plaster"
    sheet.pattern(0, style.eaves_m, wall_pattern(material, size, scale, shade(style.wall, 0.93), style.joint, rng))
    if style.mural and width_m > 5:
        _draw_mural(sheet, style, rng)
    elif rng.random() < 0.7:
        for storey in range(style.storeys - 1):
            for x in np.arange(1.2, width_m - 1.4, rng.uniform(2.2, 3.6)):
                y = style.ground_m + storey * style.storey_m + 0.9
                sheet.box(x - 0.06, y - 0.06, x + 0.76, y + 1.26, style.trim)
                sheet.box(x, y, x + 0.7, y + 1.2, (66, 80, 94), 230 if rng.random() < 0.3 else 0)
                sheet.box(x + 0.32, y, x + 0.38, y + 1.2, style.frame)
    sheet.box(0, style.eaves_m, width_m, style.eaves_m + 0.3, shade(style.trim, 0.9))
    return sheet


def _draw_mural(sheet: Sheet, style: FacadeStyle, rng: np.random.Generator) -> None:
    colours = (
        (226, 92, 60),
        (244, 190, 64),
        (60, 130, 170),
        (236, 226, 206),
        (70, 150, 110),
        (120, 70, 130),
        (34, 44, 66),
    )
    width, height = sheet.width_m, style.eaves_m
    sheet.box(0.3, 0.6, width - 0.3, height - 0.4, pick(rng, colours))
    for _ in range(9):
        x, y, size = rng.uniform(1, width - 1), rng.uniform(1.5, height - 1.5), rng.uniform(0.6, 2.4)
        colour = pick(rng, colours)
        kind = int(rng.integers(3))
        size = min(size, x - 0.3, width - 0.3 - x, y - 0.6, height - 0.4 - y)
        if kind == 0:
            sheet.ellipse(x, y, size, size, colour)
        elif kind == 1:
            sheet.polygon([(x - size, y - size), (x + size, y - size * 0.3), (x, y + size)], colour)
        else:
            sheet.box(x - size, y - size * 0.5, x + size, y + size * 0.5, colour)
