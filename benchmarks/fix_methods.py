"""Which way of making a fix is the default: position errors of each on both campus protocols, with 95 % intervals."""

from benchmarks.campus import PROTOCOLS, Campus, describe_campus
from benchmarks.exact_fixes import fixes_of_matches
from benchmarks.machine import describe_machine
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from retrieval.evaluation import Protocol, Ranked, evaluate, exact_ranking
from retrieval.evaluation.report import Estimate
from retrieval.localize.evidence import FIX_METHODS, FixMethod, FixSettings


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
    fixes = fixes_of_matches(campus.positions(database), rows, scores, FixSettings(method=method))
    ranked = Ranked(campus.positions(database), campus.positions(queries), rows, fixes=fixes)
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
