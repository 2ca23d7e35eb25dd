"""A diagnosis as one HTML page: a map on a plain grid, and lists. The page loads nothing from elsewhere."""

from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from jinja2 import Environment, FileSystemLoader, Template
from numpy.typing import NDArray

from index_builder.maintenance.doctor import Diagnosis, Jump, Misplaced
from retrieval.errors import counted
from retrieval.geo import Position, to_local_metres
from retrieval.index.place_index import PlaceIndex
from retrieval.index.sampling import evenly_spaced

_WIDTH: Final = 960
_MARGIN: Final = 48
_MOST_DOTS: Final = 20_000
_MOST_LISTED: Final = 200
_GRID_STEPS_M: Final = (10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1e5, 1e6)
Point = tuple[float, float]


def doctor_page(index: PlaceIndex, diagnosis: Diagnosis) -> str:
    """Write the page.

    Args:
        index: that was examined.
        diagnosis: of it.

    Returns:
        HTML.
    """
    drawing = _Drawing(index)
    return _template().render(
        title=f"{index.name}: {counted(diagnosis.count, 'reference')}",
        version=index.version,
        width=_WIDTH,
        height=drawing.height,
        grid=drawing.grid(),
        **_marks(index, diagnosis, drawing),
        tables=_tables(index, diagnosis),
        vocabulary=diagnosis.vocabulary,
        missing=f"{diagnosis.without_heading:,} without heading, {diagnosis.without_time:,} without time, "
        f"{diagnosis.without_session:,} without session; {counted(len(diagnosis.sessions), 'session')}.",
    )


@cache
def _template() -> Template:
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template("doctor_page.html.jinja")


class _Drawing:
    """From degrees to pixels of the map; a long thin place keeps its shape."""

    def __init__(self, index: PlaceIndex) -> None:
        self._origin = Position(float(np.median(index.lat)), float(np.median(index.lon)))
        metres = to_local_metres(self._origin, index.lat, index.lon)
        self._low = metres.min(axis=0)
        self._span = np.maximum(metres.max(axis=0) - self._low, 20.0)
        self._scale = (_WIDTH - 2 * _MARGIN) / max(self._span[0], self._span[1] / 1.2)
        self.height = round(float(self._span[1] * self._scale) + 2 * _MARGIN)

    def points(self, lat: NDArray[np.float64] | float, lon: NDArray[np.float64] | float) -> list[Point]:
        """Pixels of positions, x to the right and y down."""
        metres = to_local_metres(self._origin, np.atleast_1d(lat), np.atleast_1d(lon))
        x = _MARGIN + (metres[:, 0] - self._low[0]) * self._scale
        y = self.height - _MARGIN - (metres[:, 1] - self._low[1]) * self._scale
        return [(round(float(one), 1), round(float(other), 1)) for one, other in zip(x, y, strict=True)]

    def grid(self) -> dict[str, list[tuple[int, str]]]:
        """Lines every round number of metres, with their distance from the south-western photo."""
        step = next(one for one in _GRID_STEPS_M if self._span.max() / one <= 10)
        across, up = (np.arange(0, span + 1, step) for span in self._span)
        return {
            "x": [(round(_MARGIN + metres * self._scale), f"{metres:,.0f} m") for metres in across],
            "y": [(round(self.height - _MARGIN - metres * self._scale), f"{metres:,.0f} m") for metres in up],
        }


def _marks(index: PlaceIndex, diagnosis: Diagnosis, drawing: _Drawing) -> dict[str, list[tuple[object, ...]]]:
    """What the map shows: places, each but the dots with its tooltip."""

    def at(*rows: int) -> list[Point]:
        return drawing.points(index.lat[list(rows)], index.lon[list(rows)])

    some = evenly_spaced(index.count, _MOST_DOTS)
    elsewhere: list[tuple[Jump | Misplaced, str]] = [
        *((jump, "the path of its session lies") for jump in diagnosis.jumps[:_MOST_LISTED]),
        *((one, f"{one.votes} of 10 look-alikes lie") for one in diagnosis.misplaced[:_MOST_LISTED]),
    ]
    return {
        "dots": [*drawing.points(index.lat[some], index.lon[some])],
        "gaps": [
            (*at(gap.before, gap.after), f"{gap.metres:.0f} m without a photo, {gap.session}") for gap in diagnosis.gaps
        ],
        "copies": [
            (*at(group.rows[0]), f"{len(group.rows)} alike: {_ids(index, group.rows[:5])}")
            for group in diagnosis.copies[:_MOST_LISTED]
        ],
        "misplaced": [
            (
                *at(one.row),
                *drawing.points(one.lat, one.lon),
                f"{_ids(index, [one.row])}: {why} {one.metres:.0f} m away",
            )
            for one, why in elsewhere
        ],
    }


def _tables(index: PlaceIndex, diagnosis: Diagnosis) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """Title, headings and rows of each list."""
    jumps = [(_ids(index, [one.row]), f"{one.metres:.0f} m", one.session) for one in diagnosis.jumps]
    misplaced = [
        (
            _ids(index, [one.row]),
            f"{one.metres:.0f} m",
            str(one.votes),
            f"{one.score_there:.3f}",
            f"{one.score_here:.3f}",
        )
        for one in diagnosis.misplaced[:_MOST_LISTED]
    ]
    copies = [
        (str(len(group.rows)), f"{group.least_score:.4f}", _ids(index, group.rows[:8]))
        for group in diagnosis.copies[:_MOST_LISTED]
    ]
    gaps = [
        (f"{gap.metres:.0f} m", gap.session, _ids(index, [gap.before]), _ids(index, [gap.after]))
        for gap in diagnosis.gaps[:_MOST_LISTED]
    ]
    return [
        ("Off the path of their session", ("photo", "off by", "session"), [*jumps]),
        (
            "Positions that look-alikes contradict",
            ("photo", "off by", "neighbours there", "cosine there", "cosine here"),
            [*misplaced],
        ),
        ("Look-alikes in one place", ("photos", "lowest cosine", "which"), [*copies]),
        ("Stretches without photos", ("length", "session", "from", "to"), [*gaps]),
    ]


def _ids(index: PlaceIndex, rows: "list[int] | tuple[int, ...]") -> str:
    return ", ".join(reference.id for reference in index.references(list(rows)))
