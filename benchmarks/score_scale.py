"""How sharply scores weigh: by 0.02 whatever the model, or by how far the scores of the index lie apart.

    python -m benchmarks.score_scale

Fixes of single photos and of photos in a row on the campus, by the shipped bundle as it is and adapted to the database;
and what is measured of fewer photos.
"""

import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.campus import PROTOCOLS, Campus, campus_references
from benchmarks.exact_fixes import fixes_of_matches, stretch_of
from benchmarks.machine import describe_machine
from retrieval.bundle import open_bundle
from retrieval.bundle.adaptation import adapt_bundle
from retrieval.describer import Describer
from retrieval.evaluation import Bootstrap, exact_ranking, place_groups
from retrieval.geo import haversine_m
from retrieval.images import read_image
from retrieval.localize.evidence import USUAL_SPREAD, FixSettings
from retrieval.tracking import Track, TrackSettings

WITHIN_M = 25.0
FAR_M = 50.0
SURE = 0.8
COUNTS = (20, 30, 50, 100, 200, 400)
# Whether in units of what was measured, and the scale.
FIX_SCALES = ((False, 0.02), (True, 0.01), (True, 0.02), (True, 0.04))
TRACK_SCALES = ((False, 0.02), (True, 0.02), (True, 0.032))


def main() -> None:
    """Print three tables."""
    print(f"how sharply scores weigh, bgu_campus, {WITHIN_M:.0f} m; {describe_machine()}\n")
    cases = list(_cases())
    print(
        "| protocol | bundle | spread | scale | median m | p90 m | within 25 m, % | to 0.02, points "
        "| LOCATED, % | of these right, % | mean confidence |"
    )
    print("|---" * 11 + "|")
    for protocol, bundle, campus in cases:
        _print_fixes(protocol, bundle, campus)
    print("\n| protocol | bundle | scale | within 25 m, % | median m | p90 m | sure and > 50 m off, % | Brier |")
    print("|---" * 8 + "|")
    for protocol, bundle, campus in cases:
        _print_tracks(protocol, bundle, campus)
    print("\n| protocol | bundle | " + " | ".join(f"{count} photos" for count in COUNTS) + " | all |")
    print("|---" * (3 + len(COUNTS)) + "|")
    for protocol, bundle, campus in cases:
        _print_spreads(protocol, bundle, campus)


def _cases() -> Iterator[tuple[str, str, Campus]]:
    references, bundle = campus_references(), open_bundle()
    images = np.stack([read_image(row.path, bundle.preprocessing) for row in references])
    as_it_is = Campus(references, Describer(bundle).describe(images))
    for protocol in PROTOCOLS:
        yield protocol, "as it is", as_it_is
        order = np.random.default_rng(14).permutation(as_it_is.split(protocol)[0])
        batches = (images[order[begin : begin + 16]] for begin in range(0, len(order), 16))
        with tempfile.TemporaryDirectory() as folder:
            adapted = adapt_bundle(bundle, batches, Path(folder) / "adapted", "a benchmark")
            yield protocol, "adapted", Campus(references, Describer(adapted).describe(images))


def _print_fixes(protocol: str, bundle: str, campus: Campus) -> None:
    """Queries that something was taken near."""
    database, queries = campus.split(protocol)
    where, truth = campus.positions(database), campus.positions(queries)
    assert where.lat is not None
    assert where.lon is not None
    assert truth.lat is not None
    assert truth.lon is not None
    apart = haversine_m(truth.lat[:, None], truth.lon[:, None], where.lat, where.lon)
    known = apart.min(axis=1) <= WITHIN_M
    groups = place_groups(truth, WITHIN_M)[known]
    measured = stretch_of(campus.descriptors[database])
    rows, scores = exact_ranking(campus.descriptors[database], campus.descriptors[queries[known]], 20)
    before: NDArray[np.bool_] | None = None
    for in_units, scale in FIX_SCALES:
        stretch = measured if in_units else 1.0
        fixes = fixes_of_matches(where, rows, scores, FixSettings(score_scale=scale), stretch)
        errors = haversine_m(truth.lat[known], truth.lon[known], fixes.lat, fixes.lon)
        right = errors <= WITHIN_M
        before = right if before is None else before
        change = 100.0 * (right.astype(np.float64) - before)
        low, high = Bootstrap().mean_interval(change[:, None], groups)[:, 0]
        assert fixes.located is not None
        assert fixes.confidence is not None
        print(
            f"| {protocol} | {bundle} | {measured * USUAL_SPREAD:.3f} | {_named(scale, stretch, in_units)} | "
            f"{np.median(errors):.1f} | {np.quantile(errors, 0.9):.0f} | {100 * right.mean():.1f} | "
            f"{change.mean():+.1f} ({low:+.1f} to {high:+.1f}) | {100 * fixes.located.mean():.0f} | "
            f"{100 * right[fixes.located].mean():.0f} | {100 * fixes.confidence.mean():.0f} |",
            flush=True,
        )


def _named(scale: float, stretch: float, in_units: bool) -> str:
    return f"{scale * stretch:.4f}" + (f" = {scale / USUAL_SPREAD:.2f} of the spread" if in_units else "")


def _print_tracks(protocol: str, bundle: str, campus: Campus) -> None:
    """Each session of the queries in the order of its photos, without odometry."""
    database, queries = campus.split(protocol)
    where, truth = campus.positions(database), campus.positions(queries)
    assert where.lat is not None
    assert where.lon is not None
    assert truth.lat is not None
    assert truth.lon is not None
    seconds = np.array([_taken(campus.references[row].path) for row in queries])
    measured = stretch_of(campus.descriptors[database])
    rows, scores = exact_ranking(campus.descriptors[database], campus.descriptors[queries], 20)
    for in_units, scale in TRACK_SCALES:
        stretch = measured if in_units else 1.0
        cosines = scores / stretch
        # Somebody walks from photo to photo.
        settings = TrackSettings(score_scale=scale, speed_mps=1.5, max_speed_mps=3.0)
        errors, confidence = [], []
        for session in np.unique(campus.sessions[queries]):
            track, at = Track((where.lat, where.lon), settings), -np.inf
            frames = np.flatnonzero(campus.sessions[queries] == session)
            for frame in frames[np.argsort(seconds[frames], kind="stable")]:
                at = max(at + 0.5, seconds[frame])  # some were taken in one second
                fix = track.update(rows[frame], cosines[frame], at)
                assert fix.position is not None
                position = fix.position
                errors.append(float(haversine_m(truth.lat[frame], truth.lon[frame], position.lat, position.lon)))
                confidence.append(fix.confidence)
        error, sure = np.array(errors), np.array(confidence)
        right = error <= WITHIN_M
        print(
            f"| {protocol} | {bundle} | {_named(scale, stretch, in_units)} | "
            f"{100 * right.mean():.1f} | {np.median(error):.1f} | {np.quantile(error, 0.9):.0f} | "
            f"{100 * ((sure > SURE) & (error > FAR_M)).mean():.1f} | {((sure - right) ** 2).mean():.3f} |",
            flush=True,
        )


def _taken(path: Path) -> float:
    """Both phones name photos by the second."""
    digits = "".join(character for character in path.stem if character.isdigit())[:14]
    return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC).timestamp()


def _print_spreads(protocol: str, bundle: str, campus: Campus) -> None:
    """Mean of twenty draws."""
    descriptors = campus.descriptors[campus.split(protocol)[0]]
    draws = np.random.default_rng(0)
    stretches = [
        float(
            np.mean([stretch_of(descriptors[draws.choice(len(descriptors), count, replace=False)]) for _ in range(20)])
        )
        for count in COUNTS
    ]
    row = [f"{USUAL_SPREAD * stretch:.3f}" for stretch in (*stretches, stretch_of(descriptors))]
    print(f"| {protocol} | {bundle} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
