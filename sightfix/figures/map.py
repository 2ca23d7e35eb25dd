"""A map of a reference database as a figure: every position in metres; sessions differ by colour and by marker."""

import math
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError, counted
from retrieval.geo import Float64Array, Position, longitude_bounds, to_local_metres
from retrieval.index.sampling import drawn
from sightfix.figures.plotting import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY_BLUE,
    VERMILLION,
    matplotlib_figure,
    shortened,
    style_axes,
    write_figure,
)
from sightfix.inspection.survey import Survey

FIGURE_SUFFIXES: Final = frozenset({".png", ".svg", ".pdf"})
_SERIES: Final = (
    (BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (SKY_BLUE, "P"),
)  # fmt: skip
_GREY: Final = "#888888"
_MAX_POINTS: Final = 100_000
_MAX_ARROWS: Final = 300
_MARGIN: Final = 0.07  # of the longer side
_LONGER_SIDE_INCHES: Final = 8.3
_LEGEND_COLUMNS: Final = 3
_CHARACTERS_AN_INCH: Final = 10.5


def write_map_figure(survey: Survey, title: str, path: Path) -> None:
    """Draw the positions of a survey; the suffix of the path says whether as PNG, SVG or PDF.

    Args:
        survey: of the references. Of more than 100 000, that many are drawn at random.
        title: where the references come from.
        path: the file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ParameterError: no reference has a position or plane metres.
        StorageError: the file cannot be written.
    """
    matplotlib = matplotlib_figure()
    rows, metres = _metres(survey)
    scale, unit = (1000.0, "km") if np.ptp(metres, axis=0).max() >= 5000.0 else (1.0, "m")
    points = metres / scale
    span = np.maximum(np.ptp(points, axis=0), 10.0 / scale)
    groups = _groups(survey, rows)
    has_legend = len(groups) > 1 or groups[0][0] != "no session"
    inches = _figure_inches(span, len(groups) if has_legend else 0)
    figure = matplotlib.Figure(figsize=inches, layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(400.0 / math.sqrt(len(rows)), 2.0, 30.0))
    for label, colour, marker, chosen in groups:
        axes.scatter(
            points[chosen, 0],
            points[chosen, 1],
            s=size,
            color=colour,
            marker=marker,
            linewidths=0,
            alpha=0.75,
            label=label,
        )
    _draw_headings(axes, survey.heading_deg[rows], points, span)
    _frame(axes, points, span, unit)
    axes.set_title(_title(len(rows), len(survey), title, inches[0]), loc="left", fontsize=11)
    if has_legend:
        _draw_legend(figure, _is_tall(span), size)
    write_figure(figure, path, 130)


def _metres(survey: Survey) -> tuple[NDArray[np.int64], Float64Array]:
    """Rows to draw, and (n, 2) metres east and north of the south-west corner."""
    known = np.flatnonzero(np.isfinite(survey.lat if survey.has_positions else survey.north))
    if known.size == 0:
        raise ParameterError("no reference has a position to draw", remedy="Leave --map out")
    known = known[drawn(known.size, _MAX_POINTS)]
    if survey.has_positions:
        lat, lon = survey.lat[known], survey.lon[known]
        west, east = longitude_bounds(lon)
        middle = west + (east - west) % 360.0 / 2
        centre = Position(float(lat.min() + lat.max()) / 2, middle if middle < 360.0 else middle - 360.0)
        metres = to_local_metres(centre, lat, lon)
    else:
        metres = np.stack([survey.east[known], survey.north[known]], axis=1)
    return known, metres - metres.min(axis=0)


def _groups(survey: Survey, rows: NDArray[np.int64]) -> list[tuple[str, str, str, NDArray[np.bool_]]]:
    """Label, colour, marker and chosen points of the largest sessions, and of all others together in grey, first."""
    codes = survey.session[rows]
    largest = sorted(range(len(survey.sessions)), key=lambda code: -survey.sessions[code].count)
    shown = [code for code in largest if survey.sessions[code].name is not None][: len(_SERIES)]
    groups = []
    others = ~np.isin(codes, shown)
    if others.any():
        unshown = sum(session.name is not None for session in survey.sessions) - len(shown)
        label = "no session" if unshown <= 0 else counted(unshown, "more session")
        counted_in_grey = sum(session.count for code, session in enumerate(survey.sessions) if code not in shown)
        label += f" ({counted_in_grey})" if shown else ""
        groups.append((label, _GREY if shown else _SERIES[0][0], "o", others))
    for code, (colour, marker) in zip(sorted(shown, key=lambda c: str(survey.sessions[c].name)), _SERIES, strict=False):
        session = survey.sessions[code]
        name = str(session.name)
        groups.append((f"{shortened(name, 32)} ({session.count})", colour, marker, codes == code))
    return groups


def _title(drawn: int, count: int, source: str, width_inches: float) -> str:
    part = "" if drawn == count else f"{drawn:,} of "
    title, longest = f"{part}{counted(count, 'reference')} in {source}", int(width_inches * _CHARACTERS_AN_INCH)
    return title if len(title) <= longest else f"{title[: longest - 1]}…"


def _draw_legend(figure: Any, at_the_right: bool, point_size: float) -> None:
    place, columns = ("outside right upper", 1) if at_the_right else ("outside lower center", _LEGEND_COLUMNS)
    larger = max(1.0, math.sqrt(30.0 / point_size))
    legend = figure.legend(loc=place, ncols=columns, fontsize=9, frameon=False, markerscale=larger)
    for handle in legend.legend_handles:
        handle.set_alpha(1.0)


def _draw_headings(axes: Any, heading_deg: NDArray[np.float32], points: Float64Array, span: Float64Array) -> None:
    known = np.isfinite(heading_deg)
    if not 0 < known.sum() <= _MAX_ARROWS:
        return
    angle = np.radians(heading_deg[known].astype(np.float64))
    length = float(np.clip(0.4 / math.sqrt(known.sum()), 0.02, 0.05)) * float(span.max())
    axes.quiver(
        *points[known].T, length * np.sin(angle), length * np.cos(angle),
        angles="xy", scale_units="xy", scale=1.0, width=0.0022, headwidth=4.5, color="#333333", alpha=0.7,
    )  # fmt: skip


def _frame(axes: Any, points: Float64Array, span: Float64Array, unit: str) -> None:
    """Equal metres on both axes, room around the points, and a scale bar of a round length."""
    margin = _MARGIN * float(span.max())
    middle = points.max(axis=0) / 2
    for centre, width, limits in zip(middle, span, (axes.set_xlim, axes.set_ylim), strict=True):
        limits(centre - width / 2 - margin, centre + width / 2 + margin)
    axes.set_aspect("equal")
    axes.set_xlabel(f"east, {unit}")
    axes.set_ylabel(f"north, {unit}")
    style_axes(axes)
    length = _round_length(0.25 * float(span.max()))
    right, bottom = middle[0] + span[0] / 2 + 0.6 * margin, middle[1] - span[1] / 2 - 0.62 * margin
    axes.plot([right - length, right], [bottom, bottom], color="black", linewidth=2.5, solid_capstyle="butt")
    axes.annotate(
        f"{length:g} {unit}", (right - length / 2, bottom), xytext=(0, 3), textcoords="offset points", ha="center",
        fontsize=9,
    )  # fmt: skip


def _round_length(length: float) -> float:
    """The largest of 1, 2, 5, 10, 20, … that is not longer."""
    power = 10.0 ** math.floor(math.log10(length))
    return max(step * power for step in (1.0, 2.0, 5.0) if step * power <= length)


def _figure_inches(span: Float64Array, legend_entries: int) -> tuple[float, float]:
    """Width and height that the map fills: wide ones with the legend below, tall ones with the legend at the right."""
    sides = span + 2 * _MARGIN * span.max()
    inches = _LONGER_SIDE_INCHES * sides / sides.max()
    if _is_tall(span):
        return max(3.0, float(inches[0])) + 0.8 + (2.9 if legend_entries else 0.0), float(inches[1]) + 0.8
    legend = 0.15 + 0.22 * math.ceil(legend_entries / _LEGEND_COLUMNS) if legend_entries else 0.0
    return float(inches[0]) + 0.7, max(1.5, float(inches[1])) + 0.8 + legend


def _is_tall(span: Float64Array) -> bool:
    return bool(span[1] > 1.3 * span[0])
