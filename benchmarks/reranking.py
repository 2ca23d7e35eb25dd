"""Re-ranking on bgu_campus: recall before and after on both protocols, what it would do to the fix, and what it costs.

    python -m benchmarks.reranking

Ratio, geometry and the least number of inliers were chosen on the west of the campus (east < 227 m), so of the whole
protocols about half of the queries took part in the choice; of the ``east`` rows (east > 252 m) none did.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.campus import PROTOCOLS, Campus, describe_campus
from benchmarks.exact_fixes import fixes_of_matches
from benchmarks.indexing_throughput import PHOTOS
from benchmarks.machine import describe_machine
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from retrieval.evaluation import (
    BeforeReranking,
    Bootstrap,
    EvaluationReport,
    Protocol,
    Ranked,
    evaluate,
    exact_ranking,
    place_groups,
)
from retrieval.evaluation.report import Estimate
from retrieval.geo import haversine_m
from retrieval.machine import read_ahead
from retrieval.verification.local_features import (
    FeatureSettings,
    LocalFeatures,
    StoredFeatures,
    decode_features,
    write_features,
)
from retrieval.verification.verifier import QueryFeatures, Reranker, RerankSettings, count_inliers

RADIUS_M = 25.0
EAST_BEGINS_M = 252.0
TIMED_QUERIES = 50

Rows = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--top", type=int, default=20)
    arguments = parser.parse_args()
    campus = describe_campus(Describer(open_bundle()), arguments.photos)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "features.arrow"
        took = write_features(path, read_ahead(features_of, [reference.path for reference in campus.references]))
        stored = StoredFeatures(path, FeatureSettings(), len(campus.references))
        print(f"re-ranking the best {arguments.top}, bgu_campus, {RADIUS_M:.0f} m; {describe_machine()}\n")
        reranker = Reranker(stored, RerankSettings(top=arguments.top))
        print("| protocol | queries counted | recall | before | after | change, points | chance | another best match |")
        print("|---|---|---|---|---|---|---|---|")
        found = {}
        for name, (database, queries) in protocols(campus).items():
            found[name] = ranking(campus, stored, reranker, database, queries)
            print_recall(name, *found[name])
        print("\nThe fix, made from the matches by score as it is, or from the new order:\n")
        print("| protocol | queries | within 25 m by score | from the new order | change, points | median m | p90 m |")
        print("|---|---|---|---|---|---|---|")
        for name, (ranked, scores, _) in found.items():
            print_fixes(name, ranked, scores)
        print_cost(campus, arguments.photos, stored, reranker, took)


def features_of(path: Path) -> LocalFeatures:
    """The local features of one photo."""
    return decode_features(path.read_bytes(), FeatureSettings())


def protocols(campus: Campus) -> dict[str, tuple[Rows, Rows]]:
    """Rows of database and queries: the whole campus, and its east alone."""
    east = np.array([(r.position.lon - 34.80) * 95_160.0 > EAST_BEGINS_M for r in campus.references if r.position])
    whole = {name: campus.split(name) for name in PROTOCOLS}
    parts = {f"east-{name}": tuple(rows[east[rows]] for rows in split) for name, split in whole.items()}
    return {**whole, **parts}  # type: ignore[dict-item]


def ranking(
    campus: Campus, stored: StoredFeatures, reranker: Reranker, database: Rows, queries: Rows
) -> tuple[Ranked, NDArray[np.float32], EvaluationReport]:
    """The re-ranked matches, the scores before, and what was measured."""
    rows, scores = exact_ranking(campus.descriptors[database], campus.descriptors[queries], 20)

    def order(query: int) -> Rows:
        asked = QueryFeatures(stored.settings, stored.features(int(queries[query])))
        return reranker.order(reranker.inliers(asked, database[rows[query]]), rows.shape[1])

    orders = np.stack(list(read_ahead(order, range(len(queries)))))
    settings = reranker.settings
    before = BeforeReranking(rows, settings.top, settings.min_inliers)
    after = np.take_along_axis(rows, orders, axis=1)
    ranked = Ranked(campus.positions(database), campus.positions(queries), after, before=before)
    report = evaluate(ranked, Protocol(radii_m=(RADIUS_M,), recall_at=(1, 5, 10), grouping="place")).report
    return ranked, scores, report


def print_recall(name: str, ranked: Ranked, scores: NDArray[np.float32], report: EvaluationReport) -> None:
    """Rows of the first table."""
    assert report.reranking is not None
    curve = report.recall[0]
    for at, change in zip(curve.at, report.reranking.changes, strict=True):
        print(
            f"| {name} | {curve.counted} of {report.queries} | R@{at.n} | {100 * (change.before or 0):.1f} | "
            f"{cell(at.recall)} | {cell(change.change, sign='+')} | {100 * (at.chance or 0):.1f} | "
            f"{100 * report.reranking.moved_share:.0f} % |",
            flush=True,
        )


def print_fixes(name: str, ranked: Ranked, scores: NDArray[np.float32]) -> None:
    """A row of the second table."""
    assert ranked.before is not None
    assert ranked.queries.lat is not None
    assert ranked.queries.lon is not None

    def errors(rows: Rows) -> NDArray[np.float64]:
        # The scores stay in their places: what is first weighs most.
        fixes = fixes_of_matches(ranked.database, rows, scores)
        return np.asarray(haversine_m(ranked.queries.lat, ranked.queries.lon, fixes.lat, fixes.lon))

    old, new = errors(ranked.before.rows), errors(ranked.rows)
    change = (new <= RADIUS_M).astype(np.float64) - (old <= RADIUS_M)
    low, high = Bootstrap().mean_interval(change[:, None], place_groups(ranked.queries, RADIUS_M))[:, 0]
    pairs = [f"{statistic(old):.1f} → {statistic(new):.1f}" for statistic in (np.median, p90)]
    print(
        f"| {name} | {len(old)} | {100 * (old <= RADIUS_M).mean():.1f} | {100 * (new <= RADIUS_M).mean():.1f} | "
        f"{100 * change.mean():+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) | {pairs[0]} | {pairs[1]} |",
        flush=True,
    )


def p90(errors: NDArray[np.float64]) -> float:
    """The 90th percentile."""
    return float(np.quantile(errors, 0.9))


def print_cost(campus: Campus, photos: Path, stored: StoredFeatures, reranker: Reranker, took: int) -> None:
    """Milliseconds and bytes, one photo at a time on one thread; of the campus, and of photos larger than is kept."""
    database, queries = campus.split("cross-phone")
    rows, _ = exact_ranking(campus.descriptors[database], campus.descriptors[queries], reranker.settings.top)
    some = np.linspace(0, len(queries) - 1, TIMED_QUERIES).astype(np.int64)
    asked = [QueryFeatures(stored.settings, stored.features(int(queries[query]))) for query in some]
    find = timed([lambda path=campus.references[queries[query]].path: features_of(path) for query in some])
    pairs = zip(asked, database[rows[some]], strict=True)
    compare = timed([lambda one=one, matches=matches: reranker.inliers(one, matches) for one, matches in pairs])
    large = [LargePhoto.of(path) for path in sorted((photos / "lund_exif").rglob("*.jpg"))]
    points = np.mean([len(stored.features(row)) for row in range(stored.count)])
    print(
        f"\none photo of 192×256: {find:.0f} ms to find its features (median), {compare:.0f} ms to compare it with "
        f"{reranker.settings.top}; {points:.0f} points and {took / stored.count:,.0f} bytes a reference\n"
        f"one photo of 1024×768, reduced to 640×480: {np.median([photo.find_ms for photo in large]):.0f} ms, "
        f"{np.mean([photo.points for photo in large]):.0f} points; compared with 20 others: "
        f"{20 * np.median(pair_times(large, reranker)):.0f} ms"
    )


@dataclass(frozen=True)
class LargePhoto:
    """A photo's features, and what they cost."""

    features: LocalFeatures
    find_ms: float

    @property
    def points(self) -> int:
        """How many."""
        return len(self.features)

    @classmethod
    def of(cls, path: Path) -> "LargePhoto":
        """Find them."""
        features = features_of(path)
        return cls(features, timed([lambda: features_of(path)]))


def pair_times(photos: Sequence[LargePhoto], reranker: Reranker) -> list[float]:
    """Milliseconds to compare a photo with another, of neighbours in the list."""
    geometry = reranker.settings.geometry
    return [
        timed([lambda one=one, other=other: count_inliers(one.features, other.features, geometry)])
        for one, other in pairwise(photos)
    ]


def timed(works: Sequence[Callable[[], object]]) -> float:
    """Median milliseconds of this thread's processor that some works take: others on the machine do not count."""
    times = []
    for work in works:
        started = time.thread_time()
        work()
        times.append((time.thread_time() - started) * 1e3)
    return float(np.median(times))


def cell(estimate: Estimate, sign: str = "") -> str:
    """A share in percent with its interval."""
    value, low, high = (100 * (part or 0.0) for part in (estimate.value, estimate.low, estimate.high))
    return f"{value:{sign}.1f} ({low:{sign}.1f} to {high:{sign}.1f})"


if __name__ == "__main__":
    main()
