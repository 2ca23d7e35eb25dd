"""The report as text: `table.md` for people and `table.csv` for programs."""

import csv
import io
from collections.abc import Iterator, Sequence

from training.comparison.report import (
    FAMILIES,
    Column,
    ComparedRow,
    ComparisonReport,
    Contrast,
    Difference,
    Epochs,
    Interval,
    ReportRow,
)

NOTHING = "–"


def percent(interval: Interval | None) -> str:
    """A share as percent with its interval: `56.3 [51.0, 61.2]`."""
    if interval is None:
        return NOTHING
    return f"{100 * interval.value:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def points(interval: Interval) -> str:
    """A difference of shares in percentage points: `+3.1 [0.4, 5.9]`."""
    low, high = _signed(100 * interval.low), _signed(100 * interval.high)
    return f"{_plus(100 * interval.value)} [{low}, {high}]"


def _signed(number: float) -> str:
    text = f"{number:.1f}"
    return "0.0" if text == "-0.0" else text.replace("-", "−")


def _plus(number: float) -> str:
    text = _signed(number)
    return text if text == "0.0" or text.startswith("−") else f"+{text}"


def epochs_text(epochs: Sequence[Epochs]) -> str:
    """Of the evaluated checkpoints, and how many were trained where that differs: `3–5 of 10`."""
    evaluated = _span([seed.evaluated for seed in epochs])
    trained = [seed.trained for seed in epochs if seed.trained is not None]
    of = _span(trained) if trained else evaluated
    return evaluated if of == evaluated else f"{evaluated} of {of}"


def _span(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low}–{high}"


def seeds_text(row: ReportRow) -> str:
    """How many seeds are in, and of how many."""
    return str(row.wanted) if len(row.seeds) == row.wanted else f"{len(row.seeds)} of {row.wanted}"


def row_name(row: ComparedRow) -> str:
    """Method and, where it says more, the label."""
    is_method = row.label == row.method or row.label.replace("-", "_").startswith(row.method)
    return row.method_name if is_method else f"{row.method_name} ({row.label})"


def contrast_sentence(contrast: Contrast) -> str:
    """What a contrast found, in one sentence with numbers."""
    value, _, interval = points(contrast.points).partition(" ")
    verdict = f": {contrast.verdict}" if contrast.verdict else ""
    seeds = ""
    if contrast.by_seed:
        low, high = (_plus(100 * end) for end in (min(contrast.by_seed), max(contrast.by_seed)))
        seeds = f" ({len(contrast.by_seed)} seeds: {low} to {high})"
    return (
        f"{contrast.first} − {contrast.second}: {value} points {interval} on {contrast.eval_set} "
        f"at {contrast.radius_m:g} m{seeds}{verdict}"
    )


def protocol_lines(report: ComparisonReport) -> list[str]:
    """How it was counted, and what intervals are."""
    protocol, bootstrap = report.protocol, report.protocol.bootstrap
    return [
        "Recall@N in percent: the share of queries with a true match, one within the radius, among the first N; exact "
        "search. Only queries with a true match in the database count (convention `solvable`). Chance: the same for a "
        "random ranking.",
        f"[low, high]: {100 * bootstrap.level:g} % bootstrap interval over places of {protocol.place_m:g} m, which are "
        f"drawn as a whole ({bootstrap.resamples} resamples, seed {bootstrap.seed}). Seeds are averaged query by query "
        "before, so intervals do not cover the seed: the spread over seeds is in table.csv.",
        "Heat: the share of a heat map's energy in its top 10 % of locations (an even map has 10.0); maps of different "
        "grids are not quite comparable. Match maps are of a query with its nearest true photo.",
        "Epochs: after how many the evaluated checkpoint was saved, `of` how many trained.",
    ]


def markdown(report: ComparisonReport) -> str:
    """The whole of `table.md`."""
    parts = ["# Comparison of training objectives", *_warnings(report), _main_table(report)]
    parts.append("\n".join(f"- {line}" for line in protocol_lines(report)))
    if report.differences:
        parts += [f"## Difference to the baseline ({report.baseline}) at R@1, points", _difference_table(report)]
        parts.append("Paired: the same queries, the same backbone. The interval is of the differences by query.")
    if report.contrasts:
        parts += ["## Does the paper's ordering hold?", *_contrast_parts(report)]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {note}." for note in report.notes)]
    if report.made_with:
        parts += ["## Made with", "\n".join(f"- {line}" for line in report.made_with)]
    return "\n\n".join(parts) + "\n"


def _warnings(report: ComparisonReport) -> Iterator[str]:
    if report.missing:
        yield "**Not complete.** Missing: " + "; ".join(report.missing) + "."


def _main_table(report: ComparisonReport) -> str:
    heads = ["method", "backbone", "seeds", "epochs"]
    heads += [f"{column.eval_set}<br>{column.radius_m:g} m<br>R@{column.n}" for column in report.columns]
    heads += [f"heat, {name}<br>{kind}" for name in report.eval_sets for kind in ("activation", "match")]
    heat = [""] * (2 * len(report.eval_sets))
    lines = [
        ["*queries*", "", "", "", *(str(column.queries) for column in report.columns), *heat],
        ["*chance*", "", "", "", *(f"{100 * column.chance:.1f}" for column in report.columns), *heat],
    ]
    for row in report.rows:
        cells = [percent(cell.recall) for cell in row.cells]
        shares = [percent(share) for h in row.heat.values() for share in (h.activation, h.match)]
        backbone = f"{row.row.backbone}, {row.row.size}"
        lines.append([row_name(row.row), backbone, seeds_text(row), epochs_text(row.epochs), *cells, *shares])
    return _table(heads, lines, left=2)


def _difference_table(report: ComparisonReport) -> str:
    places = list(dict.fromkeys((d.eval_set, d.radius_m) for d in report.differences))
    by_row: dict[ComparedRow, dict[tuple[str, float], Difference]] = {}
    for difference in report.differences:
        by_row.setdefault(difference.row, {})[difference.eval_set, difference.radius_m] = difference
    lines = [
        [row_name(row), row.backbone, *(points(there[place].points) for place in places)]
        for row, there in by_row.items()
    ]
    return _table(["method", "backbone", *(f"{name}<br>{radius:g} m" for name, radius in places)], lines, left=2)


def _contrast_parts(report: ComparisonReport) -> Iterator[str]:
    yield "The paper: contrastive and information-maximising objectives are above self-distillation."
    for backbone in dict.fromkeys(contrast.backbone for contrast in report.contrasts):
        contrasts = [contrast for contrast in report.contrasts if contrast.backbone == backbone]
        members: dict[str, tuple[str, ...]] = {}
        for contrast in contrasts:
            members |= dict(zip((contrast.first, contrast.second), contrast.members, strict=True))
        stand = "; ".join(f"{family}: {', '.join(members[family])}" for family in FAMILIES if family in members)
        yield f"Means at R@1 on {backbone}, of {stand}."
        yield "\n".join(f"- {contrast_sentence(contrast)}." for contrast in contrasts)


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in (heads, rule, *lines))


_CSV_HEADER = (
    "label,method,backbone,size,eval_set,radius_m,n,recall,low,high,seed_min,seed_max,chance,queries,places,seeds,"
    "epochs,heat_activation,heat_activation_low,heat_activation_high,heat_match,heat_match_low,heat_match_high\n"
)


def csv_text(report: ComparisonReport) -> str:
    """The whole of `table.csv`: one line a row, evaluation set, radius and N; shares from 0 to 1."""
    out = io.StringIO()
    out.write(_CSV_HEADER)
    writer = csv.writer(out, lineterminator="\n")
    for row in report.rows:
        for column, cell in zip(report.columns, row.cells, strict=True):
            numbers = (cell.recall.value, cell.recall.low, cell.recall.high, cell.seed_min, cell.seed_max)
            heat = row.heat[column.eval_set]
            writer.writerow(
                [
                    *(row.row.label, row.row.method, row.row.backbone, row.row.size),
                    *_place(column),
                    *(f"{number:.6g}" for number in (*numbers, column.chance)),
                    *(column.queries, column.places, len(row.seeds), epochs_text(row.epochs)),
                    *(number for share in (heat.activation, heat.match) for number in _ends(share)),
                ]
            )
    return out.getvalue()


def _place(column: Column) -> tuple[str, str, int]:
    return column.eval_set, f"{column.radius_m:g}", column.n


def _ends(share: Interval | None) -> tuple[str, str, str]:
    if share is None:
        return "", "", ""
    return f"{share.value:.6g}", f"{share.low:.6g}", f"{share.high:.6g}"
