"""A report as tables for people: plain text here, the same rows for any other renderer."""

from dataclasses import dataclass

from retrieval.errors import counted
from retrieval.evaluation.report import (
    ConfidenceReport,
    Estimate,
    EvaluationReport,
    PositionErrorReport,
    RadiusReport,
    RerankingReport,
    StatusReport,
)

_ANSWERED_SHARES = (0.1, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class ReportTable:
    """One table: title, column names, rows of text. The first column is a name, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def headline(report: EvaluationReport) -> str:
    """One line: how many queries and database images, by which convention and distance."""
    return (
        f"{counted(report.queries, 'query')} against {counted(report.database, 'database image')} · "
        f"convention {report.convention} · distance: {'UTM' if report.measure == 'utm' else report.measure}"
    )


def interval_line(report: EvaluationReport) -> str:
    """One line: how the intervals were made."""
    method = report.intervals
    what = counted(method.groups, method.grouping) + (f" of {method.place_m:g} m" if method.place_m is not None else "")
    return (
        f"[..] is the {method.level:.0%} bootstrap interval over {what} "
        f"({method.resamples} resamples, seed {method.seed})"
    )


def field_line(radius: RadiusReport) -> str:
    """The recalls as the field's evaluators log them: percent with one decimal."""
    values = ((entry.n, entry.recall.value) for entry in radius.at)
    return ", ".join(f"R@{n}: {value * 100:.1f}" for n, value in values if value is not None)


def report_tables(report: EvaluationReport) -> list[ReportTable]:
    """The report as tables: recall, position error, and where there are fixes confidence and statuses."""
    tables = [_recall_table(report)]
    if report.reranking is not None:
        tables.append(_reranking_table(report.reranking))
    tables.append(_error_table(report.position_errors))
    if report.confidence is not None:
        tables.append(_confidence_table(report.confidence))
        tables.append(_answered_table(report.confidence))
    if report.statuses:
        tables.append(_status_table(report.statuses))
    return tables


def trailing_lines(report: EvaluationReport) -> list[str]:
    """What belongs below the tables: the field's own lines where asked, how intervals were made, and the notes."""
    lines = []
    if report.convention == "vpr-methods-evaluation":
        lines += [f"{radius.radius_m:g} m: {field_line(radius)}" for radius in report.recall]
    return [*lines, interval_line(report), *(f"Note: {note}." for note in report.notes)]


def plain_text(report: EvaluationReport) -> str:
    """The whole report as plain text, columns aligned by spaces."""
    parts = [headline(report), *(_aligned(table) for table in report_tables(report)), *trailing_lines(report)]
    return "\n\n".join(parts)


def _recall_table(report: EvaluationReport) -> ReportTable:
    columns = ("radius", "solvable queries", "counted", "N", "recall, %", "chance, %")
    rows = []
    for radius in report.recall:
        lead = (f"{radius.radius_m:g} m", f"{radius.solvable} ({radius.solvable_share:.1%})", str(radius.counted))
        for entry in radius.at:
            rows.append((*lead, str(entry.n), _percent(entry.recall), _chance(entry.chance)))
            lead = ("", "", "")
    return ReportTable("Recall", columns, tuple(rows))


def _reranking_table(reranking: RerankingReport) -> ReportTable:
    title = (
        f"What re-ranking the best {reranking.top} changed ({reranking.min_inliers} points must fit; "
        f"{reranking.moved_share:.1%} of the queries have another best match)"
    )
    rows = tuple(
        (
            f"{change.radius_m:g} m",
            str(change.n),
            "–" if change.before is None else f"{change.before * 100:.1f}",
            _percent(change.change),
        )
        for change in reranking.changes
    )
    return ReportTable(title, ("radius", "N", "recall before, %", "change, points"), rows)


def _error_table(errors: tuple[PositionErrorReport, ...]) -> ReportTable:
    columns = ("answer", "answered", "unanswered", "median, m", "p90, m", f"within {errors[0].within_m:g} m, %")
    rows = tuple(
        (
            error.answer,
            str(error.answered),
            str(error.unanswered),
            _metres(error.median_m),
            _metres(error.p90_m),
            _percent(error.within_share),
        )
        for error in errors
    )
    return ReportTable("Position error of the answered queries", columns, rows)


def _confidence_table(confidence: ConfidenceReport) -> ReportTable:
    rows = [
        ("Brier score", f"{confidence.brier:.3f}"),
        ("Brier score of the base rate", f"{confidence.brier_of_base_rate:.3f}"),
        ("calibration error", _plain(confidence.calibration_error)),
        ("the same, were all confidences right", f"{confidence.calibration_error_if_honest:.3f}"),
    ]
    if confidence.radius_coverage is not None:
        rows.append(("truth inside radius_m (should be 68 %)", f"{_percent(confidence.radius_coverage)} %"))
    title = "Confidence of the fix" if confidence.calibrated else "Confidence of the fix (not calibrated)"
    return ReportTable(title, ("measure", "value"), tuple(rows))


def _answered_table(confidence: ConfidenceReport) -> ReportTable:
    curve = confidence.answered_curve
    rows = []
    for wanted in _ANSWERED_SHARES:
        point = min(curve, key=lambda point: abs(point.answered_share - wanted))
        row = (f"{point.answered_share:.1%}", f"{point.confidence:.2f}", f"{point.within_share * 100:.1f}")
        if row not in rows:
            rows.append(row)
    return ReportTable("If only the surest were answered", ("answered", "confidence", "within 25 m, %"), tuple(rows))


def _status_table(statuses: tuple[StatusReport, ...]) -> ReportTable:
    columns = ("status, %", "photos", "LOCATED", "AMBIGUOUS", "NO_MATCH")
    rows = tuple(
        (
            status.of,
            str(status.photos),
            *(f"{s * 100:.1f}" for s in (status.located_share, status.ambiguous_share, status.no_match_share)),
        )
        for status in statuses
    )
    return ReportTable("Status of the answers", columns, rows)


def _plain(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–"
    return f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _percent(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–"
    return f"{estimate.value * 100:.1f} [{estimate.low * 100:.1f}, {estimate.high * 100:.1f}]"


def _chance(chance: float | None) -> str:
    if chance is None:
        return "–"
    percent = chance * 100
    return f"{percent:.1f}" if percent >= 0.1 or percent == 0.0 else f"{percent:.1g}"


def _metres(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "–"
    value, low, high = (f"{m:.1f}" if m < 100.0 else f"{m:.0f}" for m in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}, {high}]"


def _aligned(table: ReportTable) -> str:
    grid = [table.columns, *table.rows]
    widths = [max(len(row[i]) for row in grid) for i in range(len(table.columns))]
    lines = []
    for row in grid:
        first, *numbers = row
        cells = [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(numbers, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([table.title, *(f"  {line}" for line in lines)])
