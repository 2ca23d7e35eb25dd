"""Recall of the default bundle on bgu_campus: both protocols, both conventions, two radii."""

from benchmarks.campus import PROTOCOLS, describe_campus
from benchmarks.machine import describe_machine
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from retrieval.evaluation.report import EvaluationReport

RADII_M = (25.0, 10.0)


def main() -> None:
    """Print a Markdown table."""
    print(f"recall on bgu_campus, default bundle; {describe_machine()}\n")
    print("| protocol | radius | convention | queries counted | R@1 | R@5 | R@10 | R@20 | chance R@1 |")
    print("|---|---|---|---|---|---|---|---|---|")
    campus = describe_campus(Describer(open_bundle()))
    for protocol in PROTOCOLS:
        for convention in ("solvable", "vpr-methods-evaluation"):
            _print_rows(protocol, convention, campus.evaluate(protocol, RADII_M, convention))


def _print_rows(protocol: str, convention: str, report: EvaluationReport) -> None:
    for curve in report.recall:
        cells = [
            f"{100 * (at.recall.value or 0):.1f} ({100 * (at.recall.low or 0):.1f}–{100 * (at.recall.high or 0):.1f})"
            for at in curve.at
        ]
        print(
            f"| {protocol} | {curve.radius_m:.0f} m | {convention} | {curve.counted} of {report.queries} | "
            + " | ".join(cells)
            + f" | {100 * (curve.at[0].chance or 0):.1f} |"
        )


if __name__ == "__main__":
    main()
