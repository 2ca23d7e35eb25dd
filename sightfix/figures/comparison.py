"""The figure of a comparison: recall@1 of every row with its interval and its seeds, one panel an evaluation set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from retrieval.artefact import storage_errors
from retrieval.errors import counted
from sightfix.figures.plotting import (
    BLACK,
    BLUE,
    DASHED,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    matplotlib_figure,
    style_axes,
    write_figure,
)
from training.comparison.report import (
    CONTRASTIVE,
    INFORMATION_MAXIMISING,
    SELF_DISTILLATION,
    UNTRAINED,
    ComparisonReport,
    ReportRow,
    family_of,
)
from training.comparison.table_text import row_name

# Families differ by colour and by marker.
_LOOKS: Final[dict[str, tuple[str, str]]] = {
    "untrained": (GREY, "X"),
    "triplet": (BLACK, "s"),
    CONTRASTIVE: (BLUE, "o"),
    SELF_DISTILLATION: (ORANGE, "^"),
    INFORMATION_MAXIMISING: (GREEN, "D"),
    "other": (PURPLE, "v"),
}
_PANEL_INCHES: Final = 3.6
_ROW_INCHES: Final = 0.36
_DOTS_PER_INCH: Final = 150


def write_comparison_figure(report: ComparisonReport, path: Path) -> None:
    """Draw the figure and write it in one step.

    Raises:
        MissingExtraError: matplotlib is not installed.
        StorageError: the file cannot be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_figure(comparison_figure(report), path, _DOTS_PER_INCH)


def comparison_figure(report: ComparisonReport) -> Any:
    """Recall@1 at the first radius.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    names = report.eval_sets
    places, heads = _places(report.rows)
    bottom = max([*places, *(y for y, _ in heads)], default=0) + 0.7
    width = max(5.6, 2.2 + _PANEL_INCHES * len(names))
    figure = matplotlib_figure().Figure(figsize=(width, 1.75 + _ROW_INCHES * (bottom + 0.7)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _panel(axes, report, name, places)
        for y, backbone in heads:
            axes.axhline(y - 0.45, color="#bbbbbb", linewidth=0.8)
            if axes is panels[0]:
                axes.annotate(
                    backbone, (0, y), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                    fontsize=9, color=GREY, va="center", style="italic", bbox={"color": "white", "pad": 1.5},
                )  # fmt: skip
    panels[0].set_yticks(places, [row_name(row.row) for row in report.rows], fontsize=10)
    panels[0].set_ylim(bottom, -0.7)
    bootstrap = report.protocol.bootstrap
    figure.suptitle(
        f"Recall@1 within {report.protocol.radii_m[0]:g} m; bar: {100 * bootstrap.level:g} % interval over places; "
        "small dots: seeds, lowest and highest",
        fontsize=10, x=0.01, ha="left",
    )  # fmt: skip
    handles = _legend(report.rows, panels[0])
    across = len(handles) if len(names) > 1 else 3
    figure.legend(handles=handles, loc="outside lower center", ncols=across, fontsize=9, frameon=False)
    return figure


def _places(rows: Sequence[ReportRow]) -> tuple[list[float], list[tuple[float, str]]]:
    """The height of each row; and of each backbone's heading, where there is more than one backbone."""
    several = len({row.row.backbone for row in rows}) > 1
    places: list[float] = []
    heads: list[tuple[float, str]] = []
    y, before = 0.0, None
    for row in rows:
        if several and row.row.backbone != before:
            heads.append((y, row.row.backbone))
            y, before = y + 1, row.row.backbone
        places.append(y)
        y += 1
    return places, heads


def _panel(axes: Any, report: ComparisonReport, name: str, places: Sequence[float]) -> None:
    radius = report.protocol.radii_m[0]
    index, column = next(
        (index, column)
        for index, column in enumerate(report.columns)
        if (column.eval_set, column.radius_m, column.n) == (name, radius, 1)
    )
    axes.axvline(100 * column.chance, color=GREY, linestyle=DASHED, linewidth=1.2)
    _untrained_lines(axes, report.rows, index, places)
    for row, y in zip(report.rows, places, strict=True):
        cell = row.cells[index]
        colour, marker = _LOOKS[_kind(row)]
        recall = cell.recall
        axes.plot([100 * recall.low, 100 * recall.high], [y, y], color=colour, linewidth=2.0, solid_capstyle="butt")
        axes.plot(100 * recall.value, y, color=colour, marker=marker, markersize=7.5, markeredgecolor="white")
        if len(row.seeds) > 1:
            ends = [100 * cell.seed_min, 100 * cell.seed_max]
            axes.plot(ends, [y + 0.27] * 2, color=colour, marker=".", markersize=4, linestyle="none")
    axes.set_title(f"{name}, {counted(column.queries, 'query')}", fontsize=11, loc="left")
    axes.set_xlabel("recall@1, percent", fontsize=10)
    style_axes(axes, grid="x", without=("top", "right", "left"))
    axes.tick_params(axis="y", length=0)
    ends = [end for row in report.rows for end in (row.cells[index].recall.high, row.cells[index].seed_max)]
    axes.set_xlim(0, min(102.0, 106 * max(*ends, column.chance, 0.05)))


def _untrained_lines(axes: Any, rows: Sequence[ReportRow], index: int, places: Sequence[float]) -> None:
    """A dotted line down from each untrained net, as far as its backbone's rows go."""
    for row, y in zip(rows, places, strict=True):
        if row.row.method == UNTRAINED:
            last = max(p for r, p in zip(rows, places, strict=True) if r.row.backbone == row.row.backbone)
            value = 100 * row.cells[index].recall.value
            axes.plot([value, value], [y, last + 0.4], color=GREY, linestyle=(0, (1, 2)), linewidth=1.4)


def _kind(row: ReportRow) -> str:
    family = family_of(row.row.method)
    if family is not None:
        return family
    return row.row.method if row.row.method in _LOOKS else "other"


def _legend(rows: Sequence[ReportRow], axes: Any) -> list[Any]:
    there = {_kind(row) for row in rows}
    handles = [
        axes.plot([], [], color=colour, marker=marker, markersize=7, linestyle="none", label=kind)[0]
        for kind, (colour, marker) in _LOOKS.items()
        if kind in there
    ]
    handles += axes.plot([], [], color=GREY, linestyle=DASHED, linewidth=1.2, label="chance")
    return handles
