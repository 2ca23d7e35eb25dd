"""Geo prior of 1 % of 200 k × 512 rows against a full exact scan. Target: at most 0.05 of its time."""

import time
from collections.abc import Callable

import numpy as np

from benchmarks.machine import describe_machine
from retrieval.geo import GeoPrior, hilbert_key
from retrieval.index.place_index import SpatialBlocks
from retrieval.index.vectors.exact import ExactVectors, Storage

ROWS, DIM, K, REPEATS = 200_000, 512, 10, 60


def median_ms(work: Callable[[], object]) -> float:
    """Median of repeated runs, milliseconds."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def main() -> None:
    """Print one line for each storage."""
    rng = np.random.default_rng(0)
    lat, lon = rng.uniform(-0.1, 0.1, ROWS), rng.uniform(-0.1, 0.1, ROWS)
    order = np.argsort(hilbert_key(lat, lon))
    blocks = SpatialBlocks(lat[order], lon[order])
    descriptors = rng.standard_normal((ROWS, DIM), dtype=np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    side_m = 0.2 * 111_195.0
    prior = GeoPrior(0.01, 0.02, float(np.sqrt(0.01 * side_m**2 / np.pi)))
    inside = len(blocks.rows_within(prior))
    print(f"geo prior: {inside} of {ROWS} rows × {DIM}, k = {K}, one query, medians of {REPEATS}; {describe_machine()}")
    storages: tuple[Storage, ...] = ("fp32", "fp16")
    for storage in storages:
        vectors = ExactVectors.from_descriptors([descriptors], DIM, storage)
        query = descriptors[:1]
        full = median_ms(lambda: vectors.search(query, K))  # noqa: B023 - called at once
        within = median_ms(lambda: vectors.search_rows(query[0], K, blocks.rows_within(prior)))  # noqa: B023
        print(f"  {storage}: full scan {full:.2f} ms, inside the prior {within:.2f} ms, ratio {within / full:.3f}")


if __name__ == "__main__":
    main()
