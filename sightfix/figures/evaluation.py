"""The figures of an evaluation: what it found right and wrong, recall over N, position error, and confidence."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from retrieval.artefact import storage_errors
from retrieval.errors import counted
from retrieval.evaluation import Evaluation, Protocol, Ranked
from retrieval.evaluation.positions import Ground, Int64Array
from retrieval.geo import HALF_CIRCUMFERENCE_M
from retrieval.images import Preprocessing, RgbImage, decode_image, open_image, read_image_bytes
from sightfix.figures.plotting import (
    BLACK,
    BLUE,
    DASHED,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    matplotlib_figure,
    shortened,
    style_axes,
    write_figure,
)

_SERIES: Final = ((BLUE, "o"), (VERMILLION, "s"), (GREEN, "^"), (PURPLE, "D"), (ORANGE, "v"), (BLACK, "x"))
_EXAMPLES: Final = 5
_SHOWN_MATCHES: Final = 3
_THUMBNAIL_PX: Final = 320
_ORIENTATION_TAG: Final = 0x0112
_SWAPS_SIDES: Final = frozenset({5, 6, 7, 8})


@dataclass(frozen=True, slots=True)
class EvaluatedPhotos:
    """The photos behind an evaluation.

    Attributes:
        query: the path of a query's photo, by its row.
        database: the path of a database photo, by its row.
        scores: (Nq, K) float32 cosine of each match.
    """

    query: Callable[[int], Path]
    database: Callable[[int], Path]
    scores: NDArray[np.float32]


def write_figures(
    evaluation: Evaluation, ranked: Ranked, protocol: Protocol, photos: EvaluatedPhotos, folder: Path, *, seed: int = 0
) -> list[Path]:
    """Draw every figure that the evaluation has data for.

    Args:
        evaluation, ranked, protocol: what `evaluate` was given and gave.
        photos: for the examples.
        folder: where the PNG files go; made when missing.
        seed: decides which successes and failures are shown.

    Returns:
        The files written.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ImageError: a photo to be shown cannot be read.
        StorageError: the folder cannot be written.
    """
    matplotlib_figure()
    figures = {"recall.png": recall_figure(evaluation), "position_error.png": position_error_figure(evaluation)}
    if evaluation.report.confidence is not None:
        figures["confidence.png"] = confidence_figure(evaluation)
        figures["answered.png"] = answered_figure(evaluation)
    if evaluation.report.no_match_curve:
        figures["no_match.png"] = no_match_figure(evaluation)
    right, wrong = example_queries(evaluation, seed)
    if right.size:
        figures["successes.png"] = examples_figure(evaluation, ranked, protocol, photos, right, right=True)
    if wrong.size:
        figures["failures.png"] = examples_figure(evaluation, ranked, protocol, photos, wrong, right=False)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        write_figure(figure, folder / name, 130)
    return [folder / name for name in figures]


def example_queries(evaluation: Evaluation, seed: int) -> tuple[Int64Array, Int64Array]:
    """A few solvable queries whose first match is right at the first radius, and a few where it is wrong.

    Drawn at random, so that they stand for all.

    Returns:
        Two sorted arrays of query rows, int64, of at most five each.
    """
    random = np.random.default_rng(seed)
    solvable, first = evaluation.positives[0] > 0, evaluation.first_hit[0]
    groups = (np.flatnonzero(solvable & (first == 0)), np.flatnonzero(solvable & (first > 0)))
    right, wrong = (np.sort(random.permutation(rows)[:_EXAMPLES]) for rows in groups)
    return right, wrong


def recall_figure(evaluation: Evaluation) -> Any:
    """recall@N with its interval, and the recall of chance, one colour a radius."""
    figure, axes = _plot("recall@N, percent of queries", "N, how many matches count")
    for curve, (colour, marker) in zip(evaluation.curves, _SERIES * len(evaluation.curves), strict=False):
        points = [entry for entry in curve.at if entry.recall.value is not None and entry.chance is not None]
        if not points:
            continue
        n = [entry.n for entry in points]
        series = np.array([[p.recall.value, p.recall.low, p.recall.high, p.chance] for p in points], np.float64) * 100
        label = f"within {curve.radius_m:g} m ({counted(curve.counted, 'query')})"
        axes.plot(n, series[:, 0], color=colour, marker=marker, markersize=4, linewidth=1.8, label=label)
        axes.fill_between(n, series[:, 1], series[:, 2], color=colour, alpha=0.18, linewidth=0)
        axes.plot(n, series[:, 3], color=colour, linestyle=DASHED, linewidth=1.2)
    axes.plot([], [], color=GREY, linestyle=DASHED, linewidth=1.2, label="chance")
    largest = max(entry.n for entry in evaluation.curves[0].at)
    axes.set_xlim(*((0.5, 1.5) if largest == 1 else (1 - (largest - 1) * 0.02, largest + (largest - 1) * 0.02)))
    axes.set_xticks(_whole_ticks(largest))
    axes.set_ylim(0, 102)
    method = evaluation.report.intervals
    drawn = "sessions" if method.place_m is None else f"places of {method.place_m:g} m"
    _title(axes, f"Band: {method.level:.0%} bootstrap interval over {method.groups} {drawn}")
    _legend(axes)
    return figure


def position_error_figure(evaluation: Evaluation) -> Any:
    """The share of answered queries whose position error stays below x metres."""
    figure, axes = _plot("answered queries, percent", "position error, metres")
    series: list[tuple[str, NDArray[np.float64], str, Any]] = [("top-1 match", evaluation.top_error_m, BLUE, "-")]
    if evaluation.fix_error_m is not None:
        series.append(("fix", evaluation.fix_error_m, VERMILLION, (0, (6, 1.5))))
    series.append(("random database image", _random_errors(evaluation.true_ground), GREY, (0, (2, 2))))
    reach = 30.0
    for name, errors, colour, style in series:
        metres = np.sort(errors[np.isfinite(errors)])
        if metres.size == 0:
            continue
        reach = max(reach, float(np.quantile(metres, 0.98)))
        share = np.arange(metres.size + 1) / metres.size * 100
        label = name if name.startswith("random") else f"{name} ({metres.size} answered)"
        # The last step goes on to the right: all answers are counted from there.
        steps = np.concatenate([[0.0], metres, [HALF_CIRCUMFERENCE_M]])
        share = np.append(share, 100.0)
        axes.step(steps, share, where="post", color=colour, linestyle=style, linewidth=1.8, label=label)
    axes.axvline(25.0, color="black", linewidth=0.8)
    axes.annotate("25 m", (25.0, 0), xytext=(3, 4), textcoords="offset points", fontsize=9)
    axes.set_xlim(-0.01 * reach, reach)
    axes.set_ylim(0, 102)
    _title(axes, "Position error")
    _legend(axes)
    return figure


def confidence_figure(evaluation: Evaluation) -> Any:
    """Stated confidence against the share of fixes that really lie within 25 m: on the diagonal, both agree."""
    report = evaluation.report.confidence
    if report is None:
        raise ValueError("the evaluation has no confidences")
    figure, axes = _plot("truth within 25 m, percent of fixes", "stated confidence, percent", size=(5.2, 5.3))
    stated = [100 * b.mean_confidence for b in report.bins]
    kept = [100 * b.within_share for b in report.bins]
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1.0, linestyle=DASHED, label="as stated")
    each = f"bins of about {round(np.mean([b.fixes for b in report.bins]))} fixes"
    axes.plot(stated, kept, color=BLUE, marker="o", linewidth=1.8, label=each)
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 102)
    axes.set_aspect("equal")
    error, if_right = report.calibration_error.value, report.calibration_error_if_honest
    _title(axes, f"Calibration error {error:.3f} (of right confidences {if_right:.3f})")
    _legend(axes, "upper left")
    return figure


def answered_figure(evaluation: Evaluation) -> Any:
    """The share of right fixes if only the surest were given, over the share of queries that would get one."""
    report = evaluation.report.confidence
    if report is None:
        raise ValueError("the evaluation has no confidences")
    figure, axes = _plot("fixes within 25 m, percent", "queries answered, the surest first, percent")
    answered = [100 * point.answered_share for point in report.answered_curve]
    axes.plot(answered, [100 * p.within_share for p in report.answered_curve], color=BLUE, linewidth=1.8)
    half = min(report.answered_curve, key=lambda point: abs(point.confidence - 0.5))
    axes.plot([100 * half.answered_share], [100 * half.within_share], color=BLUE, marker="o", linestyle="none")
    axes.annotate(
        f"confidence {half.confidence:.2f}",
        (100 * half.answered_share, 100 * half.within_share),
        xytext=(6, 6),
        textcoords="offset points",
        fontsize=9,
    )
    every = 100 * report.answered_curve[-1].within_share
    axes.axhline(every, color=GREY, linewidth=1.0, linestyle=DASHED, label="whatever the confidence")
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    _title(axes, "What it takes to be right more often")
    _legend(axes)
    return figure


def no_match_figure(evaluation: Evaluation) -> Any:
    """What every threshold of NO_MATCH rejects: photos from elsewhere against solvable queries."""
    curve, statuses = evaluation.report.no_match_curve, evaluation.report.statuses
    figure, axes = _plot("photos from elsewhere rejected, percent", "solvable queries rejected, percent")
    axes.plot(
        [100 * point.solvable_share for point in curve],
        [100 * point.elsewhere_share for point in curve],
        color=BLUE,
        linewidth=1.8,
        label="every threshold",
    )
    shares = {status.of: 100 * status.no_match_share for status in statuses}
    if shares.get("solvable queries") is not None and shares.get("photos from elsewhere") is not None:
        at = ([shares["solvable queries"]], [shares["photos from elsewhere"]])
        axes.plot(*at, color=VERMILLION, marker="o", linestyle="none", label="the threshold in use")
    axes.plot([0, 50], [0, 50], color=GREY, linewidth=1.0, linestyle=DASHED, label="chance")
    axes.set_xlim(-1, 51)
    axes.set_ylim(-2, 102)
    _title(axes, "NO_MATCH")
    _legend(axes)
    return figure


def examples_figure(
    evaluation: Evaluation,
    ranked: Ranked,
    protocol: Protocol,
    photos: EvaluatedPhotos,
    queries: Int64Array,
    *,
    right: bool,
) -> Any:
    """One row a query: the query, its first three matches and, where the first is wrong, the nearest true one."""
    shown = min(_SHOWN_MATCHES, ranked.rows.shape[1])
    columns = 1 + shown + (0 if right else 1)
    # Cells as tall as the tallest query photo needs, and all of about the same area.
    tallest = max(_height_to_width(photos.query(int(query))) for query in queries)
    width = 2.3 / np.sqrt(tallest)
    size = (width * columns, (width * tallest + 0.3) * len(queries) + 0.7)
    figure = matplotlib_figure().Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(queries), columns, squeeze=False)
    radius = protocol.radii_m[0]
    for axes, query in zip(grid, queries, strict=True):
        path = photos.query(int(query))
        _photo(axes[0], path, shortened(path.stem, 26), GREY, 1.0)
        for rank in range(shown):
            _match(axes[1 + rank], evaluation, ranked, photos, (int(query), rank), radius)
        if not right:
            _nearest_true(axes[-1], evaluation, ranked, photos, int(query))
    heads = ["query", *(f"match {rank + 1}" for rank in range(shown)), *([] if right else ["nearest true image"])]
    for axis, head in zip(grid[0], heads, strict=True):
        axis.set_title(head, fontsize=11, fontweight="bold")
    solvable, first = evaluation.positives[0] > 0, evaluation.first_hit[0]
    every = int((solvable & ((first == 0) if right else (first > 0))).sum())
    what = "right" if right else "wrong"
    figure.suptitle(f"First match {what} at {radius:g} m: {len(queries)} of {every}, drawn at random", fontsize=12)
    return figure


def _match(
    axis: Any, evaluation: Evaluation, ranked: Ranked, photos: EvaluatedPhotos, at: tuple[int, int], radius_m: float
) -> None:
    query, rank = at
    row = int(ranked.rows[query, rank])
    if row < 0:
        axis.set_axis_off()
        return
    metres = _metres(evaluation.true_ground, query, row)
    squared = evaluation.ground.squared(np.array([query]), np.array([row]))[0]
    near = bool(squared <= evaluation.ground.squared_limit(radius_m))
    sign, colour = ("✓", GREEN) if near else ("✗", VERMILLION)
    _photo(axis, photos.database(row), f"{sign} {metres:.0f} m · score {photos.scores[query, rank]:.2f}", colour, 4.0)


def _nearest_true(axis: Any, evaluation: Evaluation, ranked: Ranked, photos: EvaluatedPhotos, query: int) -> None:
    every = np.arange(len(ranked.database))
    squared = evaluation.ground.squared(np.full_like(every, query), every)
    nearest = np.flatnonzero(squared == squared.min())
    matches = ranked.rows[query]
    # Photos from one spot are equally near; the best ranked of them says most.
    ranks = np.flatnonzero(np.isin(matches, nearest))
    row = int(matches[ranks[0]] if ranks.size else nearest[0])
    rank = f"rank {ranks[0] + 1}" if ranks.size else f"not in first {len(matches)}"
    _photo(axis, photos.database(row), f"{_metres(evaluation.true_ground, query, row):.0f} m · {rank}", BLUE, 2.0)


def _metres(ground: Ground, query: int, row: int) -> float:
    return float(ground.distance_m(np.array([query]), np.array([row]))[0])


def _random_errors(ground: Ground) -> NDArray[np.float64]:
    queries = len(ground.queries)
    drawn = np.random.default_rng(0).integers(0, len(ground.database), queries)
    return ground.distance_m(np.arange(queries), drawn)


def _photo(axis: Any, path: Path, label: str, colour: str, frame: float) -> None:
    axis.imshow(_thumbnail(path))
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlabel(label, fontsize=9)
    for spine in axis.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(frame)


def _thumbnail(path: Path) -> RgbImage:
    data = read_image_bytes(path)
    image = open_image(data)
    width, height = image.size[::-1] if image.getexif().get(_ORIENTATION_TAG) in _SWAPS_SIDES else image.size
    scale = min(1.0, _THUMBNAIL_PX / max(width, height))
    size = Preprocessing(height=max(16, round(height * scale)), width=max(16, round(width * scale)))
    return decode_image(data, size, where=str(path))


def _height_to_width(path: Path) -> float:
    height, width, _ = _thumbnail(path).shape
    return float(height / width)


def _plot(y_label: str, x_label: str, size: tuple[float, float] = (7.0, 4.8)) -> tuple[Any, Any]:
    figure = matplotlib_figure().Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label, fontsize=11)
    axes.set_ylabel(y_label, fontsize=11)
    style_axes(axes)
    return figure, axes


def _title(axes: Any, text: str) -> None:
    axes.set_title(text, fontsize=11, loc="left")


def _legend(axes: Any, place: str = "lower right") -> None:
    axes.legend(loc=place, fontsize=9.5, frameon=True, framealpha=0.9, edgecolor="none")


def _whole_ticks(largest: int) -> list[int]:
    step = max(1, -(-largest // 10))
    return sorted({1, *range(step if step > 1 else 1, largest + 1, step), largest})
