"""What adapting the shipped bundle to a place gives, and what it costs.

    python -m benchmarks.adaptation [--photos N]

Recall on the campus and on a road in two seasons beside the bundle as it is; recall over numbers of references; the
time a photo takes; and what adapting adds to describing N photos (10,000 by default, the campus over and over).
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.campus import PROTOCOLS, campus_references
from benchmarks.machine import describe_machine
from retrieval.bundle import Bundle, open_bundle
from retrieval.bundle.adaptation import adapt_bundle, fit_adaptation, photos_to_fit
from retrieval.bundle.adapted_graph import dense_describer
from retrieval.bundle.onnx_graph import restore_fp32_weights
from retrieval.bundle.vlad import Adaptation
from retrieval.describer import Describer, Descriptors
from retrieval.engines.engine import Provider
from retrieval.evaluation import Positions, Protocol, Ranked, evaluate, exact_ranking
from retrieval.evaluation.report import RadiusReport
from retrieval.images import read_image
from retrieval.references.reference import Reference

RADIUS_M = 25.0
EAST_M = 252.0
COUNTS = (10, 30, 100, 300, 1475)
Images = NDArray[np.uint8]


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=10_000)
    photos = parser.parse_args().photos
    bundle = open_bundle()
    print(f"adapting the shipped bundle; {describe_machine()}\n")
    campus, seasons = campus_references(), campus_references(name="seasons")
    images = {id(rows): _decoded(rows, bundle) for rows in (campus, seasons)}
    print("| protocol | queries | chance R@1 | as it is, R@1 | R@5 | adapted, R@1 | R@5 |")
    print("|---|---|---|---|---|---|---|")
    for name, rows, database, queries in _protocols(campus, seasons):
        _print_recall(name, bundle, rows, images[id(rows)], database, queries)
    print("\n| references | as it is, R@1 | VLAD, not projected | adapted |\n|---|---|---|---|")
    for count in COUNTS:
        _print_count(count, bundle, campus, images[id(campus)])
    with tempfile.TemporaryDirectory() as folder:
        adapted = _adapted(bundle, images[id(campus)][:849], Path(folder) / "adapted")
        print("\n| runtime | batch | adapted / as it is, median of pairs |\n|---|---|---|")
        for provider in ("cpu", "openvino"):
            _print_time(provider, bundle, adapted, images[id(campus)])
        _print_cost(bundle, adapted, images[id(campus)], photos, Path(folder))


def _protocols(
    campus: Sequence[Reference], seasons: Sequence[Reference]
) -> Iterator[tuple[str, Sequence[Reference], NDArray[np.int64], NDArray[np.int64]]]:
    sessions = np.array([row.session for row in campus])
    east = np.array([(row.position.lon - 34.80) * 95_160 > EAST_M for row in campus])
    for where, inside in (("", np.ones(len(campus), bool)), ("east, ", east)):
        for name, parts in PROTOCOLS.items():
            database, queries = (np.flatnonzero((np.char.find(sessions, part) >= 0) & inside) for part in parts)
            yield where + name, campus, database, queries
    autumn = np.array([row.session == "autumn" for row in seasons])
    yield "autumn to snow", seasons, np.flatnonzero(autumn), np.flatnonzero(~autumn)


def _print_recall(
    name: str,
    bundle: Bundle,
    rows: Sequence[Reference],
    images: Images,
    database: NDArray[np.int64],
    queries: NDArray[np.int64],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        adapted = _adapted(bundle, images[database], Path(folder) / "adapted")
        cells = []
        for one in (bundle, adapted):
            curve = _recall(rows, Describer(one).describe(images), database, queries)
            for at in curve.at:
                value, low, high = (
                    100 * (number or 0.0) for number in (at.recall.value, at.recall.low, at.recall.high)
                )
                cells.append(f"{value:.1f} ({low:.0f}–{high:.0f})")
    chance = 100 * (curve.at[0].chance or 0)
    print(f"| {name} | {curve.counted} | {chance:.1f} | {' | '.join(cells)} |", flush=True)


def _print_count(count: int, bundle: Bundle, campus: Sequence[Reference], images: Images) -> None:
    """Some photos of phone A, the queries of phone B that show the same places; means over draws."""
    sessions = np.array([row.session for row in campus])
    all_rows, queries = (np.flatnonzero(np.char.find(sessions, part) >= 0) for part in PROTOCOLS["cross-phone"])
    described = Describer(bundle).describe(images)
    recalls = []
    for draw in range(5 if count < len(all_rows) else 1):
        rng = np.random.default_rng(draw)
        database = np.sort(rng.choice(all_rows, min(count, len(all_rows)), replace=False))
        order = rng.permutation(database)
        batches = (images[order[begin : begin + 16]] for begin in range(0, len(order), 16))
        adaptation = fit_adaptation(bundle, batches).adaptation
        adapted, residuals = [], []
        for dense in _dense(bundle, images):
            adapted.append(adaptation.describe(dense))
            residuals.append(_residuals(adaptation, dense))
        ways = (described, np.concatenate(residuals), np.concatenate(adapted))
        recalls.append([_recall(campus, one, database, queries).at[0].recall.value or 0.0 for one in ways])
    cells = [f"{100 * value:.1f}" for value in np.mean(recalls, axis=0)]
    print(f"| {len(database)} | " + " | ".join(cells) + " |", flush=True)


def _dense(bundle: Bundle, images: Images) -> Iterator[list[NDArray[np.float32]]]:
    """The dense outputs of all photos, 64 at a time."""
    outputs = bundle.manifest.dense_outputs
    describe = dense_describer(restore_fp32_weights(onnx.load(bundle.graph_path("fp32"))), outputs)
    return (describe(images[begin : begin + 64]) for begin in range(0, len(images), 64))


def _residuals(adaptation: Adaptation, dense: Sequence[NDArray[np.float32]]) -> Descriptors:
    """VLAD before its projection, unit rows."""
    parts = [
        vocabulary.dense.weight * vocabulary.residuals(vocabulary.local(values), adaptation.settings.sharpness)
        for vocabulary, values in zip(adaptation.vocabularies, dense, strict=True)
    ]
    joined = np.concatenate(parts, axis=1)
    return np.asarray(joined / np.linalg.norm(joined, axis=1, keepdims=True), np.float32)


def _recall(
    rows: Sequence[Reference], described: Descriptors, database: NDArray[np.int64], queries: NDArray[np.int64]
) -> RadiusReport:
    found, _ = exact_ranking(described[database], described[queries], 5)
    where = [Positions.from_references([rows[row] for row in part]) for part in (database, queries)]
    protocol = Protocol(radii_m=(RADIUS_M,), recall_at=(1, 5), grouping="place")
    return evaluate(Ranked(*where, found), protocol).report.recall[0]


def _print_time(provider: Provider, bundle: Bundle, adapted: Bundle, images: Images) -> None:
    describers = [Describer(one, provider=provider) for one in (bundle, adapted)]
    for batch, times in ((1, 200), (16, 30)):
        ratios = []
        for _ in range(times):
            taken = []
            for describer in describers:
                started = time.perf_counter()
                describer.describe(images[:batch])
                taken.append(time.perf_counter() - started)
            ratios.append(taken[1] / taken[0])
        print(f"| {provider} | {batch} | {np.median(ratios):.3f} |", flush=True)


def _print_cost(bundle: Bundle, adapted: Bundle, images: Images, photos: int, folder: Path) -> None:
    """Of decoded photos; decoding, the same in both, would only bring the ratios nearer to 1."""
    every = np.resize(np.arange(len(images)), photos)
    sample = every[photos_to_fit(np.zeros(photos), np.zeros(photos))]
    started = time.perf_counter()
    _adapted(bundle, images[sample], folder / "again")
    fitting = time.perf_counter() - started
    seconds = {}
    for name, one, count in (("as it is", bundle, photos), ("adapted", adapted, photos - len(sample))):
        describer = Describer(one)
        started = time.perf_counter()
        for begin in range(0, count, 16):
            describer.describe(images[every[begin : begin + 16]])
        seconds[name] = time.perf_counter() - started
    alone, both = seconds["adapted"] * photos / (photos - len(sample)), fitting + seconds["adapted"]
    print(f"\nadapting to {len(sample):,} of {photos:,} decoded photos and describing the rest: {both:.0f} s, ", end="")
    print(f"{both / alone:.2f} of describing all with the adapted bundle, ", end="")
    print(f"{both / seconds['as it is']:.2f} with the bundle as it is")


def _adapted(bundle: Bundle, images: Images, folder: Path) -> Bundle:
    order = np.random.default_rng(14).permutation(len(images))
    batches = (images[order[begin : begin + 16]] for begin in range(0, len(order), 16))
    return adapt_bundle(bundle, batches, folder, "a benchmark")


def _decoded(rows: Sequence[Reference], bundle: Bundle) -> Images:
    return np.stack([read_image(row.path, bundle.preprocessing) for row in rows])


if __name__ == "__main__":
    main()
