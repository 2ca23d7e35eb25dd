"""Which way of making a fix is the default: position errors of each on both campus protocols, with 95 % intervals."""

import numpy as np

from benchmarks.campus import PROTOCOLS, Campus, describe_campus
from benchmarks.machine import describe_machine
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from retrieval.evaluation.evaluation import evaluate
from retrieval.evaluation.position_error import Fixes
from retrieval.evaluation.protocol import Protocol, Ranked
from retrieval.evaluation.ranking import exact_ranking
from retrieval.evaluation.report import Estimate
from retrieval.fix import FIX_METHODS, FixMethod, FixSettings, make_fix


def main() -> None:
    """Print a Markdown table."""
    print(f"fix methods on bgu_campus, default bundle; {describe_machine()}\n")
    print("| protocol | method | queries | median error m | p90 m | within 25 m |")
    print("|---|---|---|---|---|---|")
    campus = describe_campus(Describer(open_bundle()))
    for protocol in PROTOCOLS:
        for method in FIX_METHODS:
            print(_row(campus, protocol, method), flush=True)


def _row(campus: Campus, protocol: str, method: FixMethod) -> str:
    database, queries = campus.split(protocol)
    rows, scores = exact_ranking(campus.descriptors[database], campus.descriptors[queries], 20)
    positions = [campus.references[row].position for row in database]
    lat = np.array([position.lat for position in positions if position])
    lon = np.array([position.lon for position in positions if position])
    fixes = [
        make_fix(lat[found], lon[found], score.astype(np.float64), FixSettings(method=method))[1]
        for found, score in zip(rows, scores, strict=True)
    ]
    ranked = Ranked(
        campus.positions(database),
        campus.positions(queries),
        rows,
        fixes=Fixes(
            np.array([fix.position.lat for fix in fixes if fix]),
            np.array([fix.position.lon for fix in fixes if fix]),
            np.array([fix.confidence for fix in fixes if fix]),
        ),
    )
    report = evaluate(ranked, Protocol(grouping="place")).report
    error = next(entry for entry in report.position_errors if entry.answer == "fix")
    return (
        f"| {protocol} | {method} | {len(queries)} | {_cell(error.median_m)} | {_cell(error.p90_m)} | "
        f"{_cell(error.within_share, 100)} % |"
    )


def _cell(estimate: Estimate, scale: float = 1.0) -> str:
    assert estimate.value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return f"{scale * estimate.value:.1f} ({scale * estimate.low:.1f}–{scale * estimate.high:.1f})"


if __name__ == "__main__":
    main()
