"""A diagnosis as one HTML page: a map on a plain grid, and lists. Nothing is loaded from anywhere."""

from collections.abc import Sequence
from html import escape
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.maintenance.doctor import Diagnosis, Jump, Misplaced
from retrieval.geo import Position, to_local_metres
from retrieval.index.place_index import PlaceIndex

_WIDTH: Final = 960

_MARGIN: Final = 48

_MOST_DOTS: Final = 20_000

_MOST_LISTED: Final = 200

_STYLE: Final = """
:root{color-scheme:light dark;--ink:light-dark(#17212b,#e6edf3);--soft:light-dark(#5b6875,#9aa7b4);
--paper:light-dark(#fff,#0f151b);--grid:light-dark(#e3e8ee,#222c36);--dot:light-dark(#8fa3b8,#5f7388);
--bad:light-dark(#b3123f,#ff6b8f);--gap:light-dark(#b35c00,#ffab4a);--copy:light-dark(#0b57a8,#6cb1ff)}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1000px;margin:2rem auto;
padding:0 1rem}h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}svg{width:100%;height:auto;
border:1px solid var(--grid);border-radius:8px}table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.25rem .6rem .25rem 0;border-bottom:1px solid var(--grid);vertical-align:top}
td.n,th.n{text-align:right}.soft{color:var(--soft)}.key{display:inline-block;margin-right:1.2rem}
.grid{stroke:var(--grid)}.grid-label{fill:var(--soft);font-size:11px}.dot{fill:var(--dot)}
.bad{stroke:var(--bad);fill:none;stroke-width:2}.bad-dot{fill:var(--bad)}.gap{stroke:var(--gap);stroke-width:4;
stroke-linecap:round}.copy{stroke:var(--copy);fill:none;stroke-width:2}
"""


def doctor_page(index: PlaceIndex, diagnosis: Diagnosis) -> str:
    """The page.

    Args:
        index: that was examined.
        diagnosis: what was found.
    """
    title = f"{escape(index.name)}: {diagnosis.count:,} references"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f'<p class="soft">Version {escape(index.version)}. Everything here is a suspicion; nothing was changed.</p>'
        f"{_map(index, diagnosis)}{_lists(index, diagnosis)}</body></html>"
    )


class _Paper:
    """Metres to places on the drawing; a long thin place keeps its shape."""

    def __init__(self, index: PlaceIndex) -> None:
        self._origin = Position(float(np.median(index.lat)), float(np.median(index.lon)))
        metres = to_local_metres(self._origin, index.lat, index.lon)
        self._low = metres.min(axis=0)
        span = np.maximum(metres.max(axis=0) - self._low, 20.0)
        self._scale = (_WIDTH - 2 * _MARGIN) / max(span[0], span[1] / 1.2)
        self.span = span
        self.height = round(float(span[1] * self._scale) + 2 * _MARGIN)
        self.width = _WIDTH

    def at(self, lat: NDArray[np.float64] | float, lon: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """(n, 2) places on the drawing, x to the right and y down."""
        metres = to_local_metres(self._origin, np.atleast_1d(lat), np.atleast_1d(lon))
        x = _MARGIN + (metres[:, 0] - self._low[0]) * self._scale
        y = self.height - _MARGIN - (metres[:, 1] - self._low[1]) * self._scale
        return np.stack([x, y], axis=1)

    def grid(self) -> str:
        """Lines every round number of metres, with their distance from the south-western photo."""
        step = next(
            one for one in (10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 1e5, 1e6) if self.span.max() / one <= 10
        )
        parts = []
        for metres in np.arange(0, self.span[0] + 1, step):
            x = _MARGIN + metres * self._scale
            parts.append(f'<line class="grid" x1="{x:.0f}" x2="{x:.0f}" y1="0" y2="{self.height}"/>')
            parts.append(f'<text class="grid-label" x="{x + 3:.0f}" y="{self.height - 6}">{metres:,.0f} m</text>')
        for metres in np.arange(0, self.span[1] + 1, step):
            y = self.height - _MARGIN - metres * self._scale
            parts.append(f'<line class="grid" y1="{y:.0f}" y2="{y:.0f}" x1="0" x2="{self.width}"/>')
            parts.append(f'<text class="grid-label" x="4" y="{y - 3:.0f}">{metres:,.0f} m</text>')
        return "".join(parts)


def _map(index: PlaceIndex, diagnosis: Diagnosis) -> str:
    paper = _Paper(index)
    some = np.unique(np.linspace(0, index.count - 1, min(index.count, _MOST_DOTS)).astype(np.int64))
    dots = "".join(
        f'<circle class="dot" r="2" cx="{x:.1f}" cy="{y:.1f}"/>' for x, y in paper.at(index.lat[some], index.lon[some])
    )
    names = {row: _id(index, row) for row in _rows_told(diagnosis)}
    gaps = "".join(
        f'<line class="gap" x1="{a[0]:.1f}" y1="{a[1]:.1f}" x2="{b[0]:.1f}" y2="{b[1]:.1f}">'
        f"<title>{gap.metres:.0f} m without a photo, {escape(gap.session)}</title></line>"
        for gap in diagnosis.gaps
        for a, b in [paper.at(index.lat[[gap.before, gap.after]], index.lon[[gap.before, gap.after]])]
    )
    copies = "".join(
        f'<circle class="copy" r="7" cx="{x:.1f}" cy="{y:.1f}"><title>{len(group.rows)} alike: '
        f"{escape(', '.join(names[row] for row in group.rows[:5]))}</title></circle>"
        for group in diagnosis.copies[:_MOST_LISTED]
        for x, y in paper.at(index.lat[[group.rows[0]]], index.lon[[group.rows[0]]])
    )
    misplaced = "".join(
        f"<g><title>{escape(names[one.row])}: {why} {one.metres:.0f} m away</title>"
        f'<line class="bad" stroke-dasharray="5 4" x1="{x:.1f}" y1="{y:.1f}" x2="{to[0]:.1f}" y2="{to[1]:.1f}"/>'
        f'<circle class="bad-dot" r="5" cx="{x:.1f}" cy="{y:.1f}"/>'
        f'<circle class="bad" r="5" cx="{to[0]:.1f}" cy="{to[1]:.1f}"/></g>'
        for one, why in _elsewhere(diagnosis)
        for x, y in paper.at(index.lat[[one.row]], index.lon[[one.row]])
        for to in paper.at(one.lat, one.lon)
    )
    return (
        f'<svg viewBox="0 0 {paper.width} {paper.height}" role="img" aria-label="Map of the references">'
        f"{paper.grid()}{gaps}{dots}{copies}{misplaced}</svg><p>"
        '<span class="key">● <span class="soft">reference</span></span>'
        '<span class="key" style="color:var(--bad)">● ┄ ○ <span class="soft">a photo, where it may belong</span></span>'
        '<span class="key" style="color:var(--copy)">○ <span class="soft">look-alikes in one place</span></span>'
        '<span class="key" style="color:var(--gap)">━ <span class="soft">a stretch without photos</span></span></p>'
    )


def _elsewhere(diagnosis: Diagnosis) -> list[tuple[Jump | Misplaced, str]]:
    """Photos that may lie elsewhere, and what lies there."""
    jumps: list[tuple[Jump | Misplaced, str]] = [(jump, "its session's way lies") for jump in diagnosis.jumps]
    others = [(one, f"{one.votes} of 10 look-alikes lie") for one in diagnosis.misplaced]
    return [*jumps[:_MOST_LISTED], *others[:_MOST_LISTED]]


def _lists(index: PlaceIndex, diagnosis: Diagnosis) -> str:
    misplaced = [
        (
            escape(_id(index, one.row)),
            f"{one.metres:.0f} m",
            str(one.votes),
            f"{one.score_there:.3f}",
            f"{one.score_here:.3f}",
        )
        for one in diagnosis.misplaced[:_MOST_LISTED]
    ]
    jumps = [(escape(_id(index, one.row)), f"{one.metres:.0f} m", escape(one.session)) for one in diagnosis.jumps]
    copies = [
        (str(len(group.rows)), f"{group.least_score:.4f}", escape(", ".join(_id(index, row) for row in group.rows[:8])))
        for group in diagnosis.copies[:_MOST_LISTED]
    ]
    gaps = [
        (f"{gap.metres:.0f} m", escape(gap.session), escape(_id(index, gap.before)), escape(_id(index, gap.after)))
        for gap in diagnosis.gaps[:_MOST_LISTED]
    ]
    lacking = (
        f"<p>{diagnosis.without_heading:,} without heading, {diagnosis.without_time:,} without time, "
        f"{diagnosis.without_session:,} without session; {len(diagnosis.sessions)} sessions.</p>"
    )
    return (
        _table("Off their session's way", ("photo", "off by", "session"), jumps)
        + _table(
            "Positions that look-alikes contradict",
            ("photo", "off by", "neighbours there", "alike there", "here"),
            misplaced,
        )
        + _table("Look-alikes in one place", ("photos", "least alike", "which"), copies)
        + _table("Stretches without photos", ("length", "session", "from", "to"), gaps)
        + f"<h2>What is lacking</h2>{lacking}"
    )


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return f'<h2>{title}</h2><p class="soft">None.</p>'
    head = "".join(f"<th>{name}</th>" for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<h2>{title} ({len(rows)})</h2><table><tr>{head}</tr>{body}</table>"


def _rows_told(diagnosis: Diagnosis) -> set[int]:
    rows = {one.row for one, _ in _elsewhere(diagnosis)}
    return rows.union(*(group.rows[:5] for group in diagnosis.copies[:_MOST_LISTED]))


def _id(index: PlaceIndex, row: int) -> str:
    return index.references([row])[0].id
