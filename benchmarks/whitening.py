"""Whitening the default bundle: fitted on the place itself, and fitted on the toy town, which has seen none of it.

    python -m benchmarks.whitening

The first is what `sightfix export default --whiten` does for a user. The second asks whether the bundle we ship should
be whitened: only if photos that are free to use make it better on a campus it has never seen.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.campus import PROTOCOLS, Campus, describe_campus
from benchmarks.indexing_throughput import PHOTOS
from benchmarks.machine import describe_machine
from index_builder.describing import describe_references
from retrieval.bundle import open_bundle
from retrieval.describer import Describer, Descriptors
from retrieval.evaluation import Bootstrap, Positions, exact_ranking, first_hits, place_groups
from retrieval.evaluation.positions import count_positives, true_ground
from retrieval.index.whitening import Whitening, fit_whitening
from retrieval.references import open_references
from sightfix.toy_town import town_for, write_survey

RADIUS_M = 25.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--toy-photos", type=int, default=1200)
    arguments = parser.parse_args()
    describer = Describer(open_bundle())
    campus = describe_campus(describer, arguments.photos)
    print(f"whitening, R@1 at 25 m in percent, paired change from raw 1280 numbers; {describe_machine()}")
    for protocol in PROTOCOLS:
        print(f"  {protocol}: raw {100 * right(campus, protocol, None).mean():.1f}")
        database, _ = campus.split(protocol)
        for dim in (64, 128, 256, 512):
            report(campus, protocol, f"fitted on its database, {dim}", fit_whitening(campus.descriptors[database], dim))
        for power in (0.0, 0.25, 0.75, 1.0):
            whitening = fit_whitening(campus.descriptors[database], 256, power)
            report(campus, protocol, f"fitted on its database, 256, power {power:g}", whitening)
    toy = describe_toy_town(describer, arguments.toy_photos)
    for protocol in PROTOCOLS:
        print(f"  {protocol}")
        for dim, power in ((256, 0.5), (512, 0.0), (512, 0.25), (512, 0.5), (1024, 0.25), (1024, 0.5)):
            report(campus, protocol, f"fitted on the toy town, {dim}, power {power:g}", fit_whitening(toy, dim, power))


def describe_toy_town(describer: Describer, count: int) -> Descriptors:
    """Descriptors of a drawn town's photos, day and dusk."""
    with tempfile.TemporaryDirectory() as folder:
        survey = write_survey(
            town_for(count, seed=5), Path(folder), references=count, queries=count // 6, on_progress=lambda _: None
        )
        parts = [survey.references_csv, survey.queries_csv]
        return np.concatenate([describe_references(open_references(f"csv:{p}"), describer).descriptors for p in parts])


def right(campus: Campus, protocol: str, whitening: Whitening | None) -> NDArray[np.float64]:
    """(Qc,) 1 where the best match of a solvable query lies within the radius."""
    descriptors = campus.descriptors if whitening is None else whitening.apply(campus.descriptors)
    database, queries = campus.split(protocol)
    rows, _ = exact_ranking(descriptors[database], descriptors[queries], 1)
    ground = true_ground(campus.positions(queries), campus.positions(database))
    return np.asarray((first_hits(ground, rows, RADIUS_M) == 0)[solvable(campus, protocol)], np.float64)


def solvable(campus: Campus, protocol: str) -> NDArray[np.bool_]:
    """Which queries have a true match at all."""
    database, queries = campus.split(protocol)
    ground = true_ground(campus.positions(queries), campus.positions(database))
    return np.asarray(count_positives(ground, (RADIUS_M,))[0] > 0)


def report(campus: Campus, protocol: str, what: str, whitening: Whitening) -> None:
    """Print recall and its change."""
    after = right(campus, protocol, whitening)
    change = after - right(campus, protocol, None)
    _, queries = campus.split(protocol)
    positions: Positions = campus.positions(queries[solvable(campus, protocol)])
    low, high = Bootstrap().mean_interval(change[:, None], place_groups(positions, 25.0))[:, 0]
    print(f"    {what}: {line([after.mean(), change.mean(), low, high])}")


def line(shares: Sequence[float]) -> str:
    """Recall, change and its interval, in percent."""
    after, change, low, high = (100 * share for share in shares)
    return f"{after:.1f} ({change:+.1f}; {low:+.1f} to {high:+.1f})"


if __name__ == "__main__":
    main()
