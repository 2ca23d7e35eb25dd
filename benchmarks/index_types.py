"""Every type of index on synthetic clustered descriptors: recall, time, memory, building, against exact search.

    python -m benchmarks.index_types --rows 1000000 --dim 512
    python -m benchmarks.index_types --rows 200000 --dim 1280
    python -m benchmarks.index_types --leave-out hnsw

Before a type is built it is said how long that was predicted to take. At last `auto` chooses, and what it chose is
measured on all rows beside exact search, whether it was left out or not.
Exact search is measured beside what the machine allows, in the same run: the memory's bandwidth for one query, and for
a batch of 64 the best of FAISS with its default threshold, FAISS with BLAS, and numpy's product in blocks.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe_machine
from index_builder.index_design import (
    IndexDesign,
    build_candidates,
    choose_parameters,
    measure_machine,
    memory_bytes,
    parameters_for,
    plan_indexes,
)
from index_builder.quality import Queries, hold_out, hold_out_twice, measure_vectors, tune
from retrieval.index.manifest import RecallReport
from retrieval.index.vectors.candidates import INDEX_TYPES, ApproximateType, CandidateParameters, StoredVectors
from retrieval.index.vectors.exact import STORAGES, ExactVectors
from retrieval.index.vectors.faiss_library import faiss_module

BATCH = 64
K = 10
_BLOCK = 16_384


def clustered(rows: int, dim: int, seed: int = 0, noise: float = 1.0) -> NDArray[np.float32]:
    """Unit rows around places of two levels: streets and, within each, spots; every photo differs from its spot's.

    With `noise` 0.6 spots are apart, and one list in a thousand holds all ten best; with 1 their photos mix.
    """
    draw = np.random.default_rng(seed)
    streets = draw.standard_normal((max(16, rows // 5000), dim), dtype=np.float32)
    spots = streets[draw.integers(0, len(streets), max(64, rows // 20))]
    spots += 0.5 * draw.standard_normal(spots.shape, dtype=np.float32)
    out = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 50_000):
        some = out[start : start + 50_000]
        some[:] = spots[draw.integers(0, len(spots), len(some))]
        some += noise * draw.standard_normal(some.shape, dtype=np.float32)
        some /= np.linalg.norm(some, axis=1, keepdims=True)
    return out


def least_ms(work: Callable[[], object], rounds: int) -> float:
    """The least time of several rounds, milliseconds: what the machine's other work does to it is left out."""
    least = np.inf
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - started)
    return float(least) * 1e3


def numpy_blocks(rows: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
    """The K best of each query by numpy's own product."""
    best = np.full((len(queries), 0), 0, np.float32)
    for start in range(0, len(rows), _BLOCK):
        scores = queries @ rows[start : start + _BLOCK].T
        best = np.concatenate([best, np.partition(scores, -K, axis=1)[:, -K:]], axis=1)
    np.sort(best, axis=1)[:, -K:]


def exact_against_the_machine(rows: NDArray[np.float32], queries: NDArray[np.float32], rounds: int) -> None:
    """Print exact search beside the memory's bandwidth and beside what libraries give by themselves."""
    faiss = faiss_module()
    vectors = {
        storage: ExactVectors.from_descriptors([rows], rows.shape[1], storage, rows[:5000]) for storage in STORAGES
    }
    ours = vectors["fp32"]
    one, batch = queries[:1], queries[:BATCH]
    read = rows.nbytes / 1e6
    bandwidth, single = [], []
    for _ in range(rounds):  # alternating, so that both see the same noise
        bandwidth.append(read / least_ms(lambda: rows.sum(), 1))
        single.append(read / least_ms(lambda: ours.search(one, K), 1))
    print(f"memory bandwidth (sum of all numbers): {max(bandwidth):.1f} GB/s")
    print(f"exact fp32, one query: {max(single):.1f} GB/s, ratio {max(single) / max(bandwidth):.2f}")
    plain = faiss.IndexFlatIP(rows.shape[1])
    plain.add(rows)
    times: dict[str, float] = {"ours": np.inf, "FAISS default": np.inf, "FAISS with BLAS": np.inf, "numpy": np.inf}
    faiss.omp_set_num_threads(1)
    for _ in range(rounds):
        times["ours"] = min(times["ours"], least_ms(lambda: ours.search(batch, K), 1))
        for name, threshold in (("FAISS default", 128_000), ("FAISS with BLAS", 16)):
            faiss.cvar.distance_compute_blas_threshold = threshold
            times[name] = min(times[name], least_ms(lambda: plain.search(batch, K), 1))
        times["numpy"] = min(times["numpy"], least_ms(lambda: numpy_blocks(rows, batch), 1))
    best = min(value for name, value in times.items() if name != "ours")
    print(f"exact fp32, batch of {BATCH}: " + ", ".join(f"{name} {value:.0f} ms" for name, value in times.items()))
    print(f"best of the others ÷ ours: {best / times['ours']:.2f}")
    held_out = hold_out(ours, 128)
    for storage, stored in vectors.items():
        at_1, at_10 = recall_by_true_scores(stored, ours, held_out)
        row("exact", storage, at_1, at_10, stored, queries, stored.bytes_per_row, 0.0)


def recall_by_true_scores(stored: ExactVectors, true: ExactVectors, held_out: Queries) -> tuple[float, float]:
    """Recall@1 and @10 of rows found in a coarser storage, judged by their fp32 scores."""
    first, all_ = 0, 0
    for place, query in enumerate(held_out.descriptors):
        found = stored.search(query[None], K + 1)[0][0]
        found = found[found != held_out.rows[place]][:K]
        scores = true.descriptors(found) @ query
        first += scores[0] >= held_out.best[place, 0] - 1e-5
        all_ += int((scores >= held_out.best[place, -1] - 1e-5).sum())
    return first / len(held_out.rows), all_ / held_out.best.size


def row(
    type_: str,
    storage: str,
    at_1: float,
    at_10: float,
    vectors: ExactVectors | StoredVectors,
    queries: NDArray[np.float32],
    bytes_each: float,
    seconds: float,
    note: str = "",
) -> None:
    """Print one row of the table."""
    one = least_ms(lambda: [vectors.search(query[None], K) for query in queries[:8]], 3) / 8
    batch = least_ms(lambda: vectors.search(queries[:BATCH], K), 2) / BATCH
    print(
        f"| {type_} | {storage} | {at_1:.3f} | {at_10:.3f} | {one:.2f} | {batch:.2f} | {bytes_each:.0f} "
        f"| {seconds:.0f} | {note} |",
        flush=True,
    )


@dataclass(frozen=True)
class Measured:
    """A type of index, built on all rows and tuned.

    Attributes:
        parameters: it is searched with.
        recall: recall@1 and @10 of queries that tuning did not see, and the median of single queries.
        build_s: seconds of building.
    """

    parameters: CandidateParameters
    recall: RecallReport
    build_s: float


def build_and_measure(
    type_: ApproximateType, exact: ExactVectors, recall: float, queries: NDArray[np.float32], exact_ms: float
) -> Measured:
    """Build a type, tune it, and print its row."""
    started = time.perf_counter()
    candidates = build_candidates(exact, parameters_for(type_, exact.count, exact.dim))
    seconds = time.perf_counter() - started
    tuned, report = tune(StoredVectors(exact, candidates), *_asked(exact, recall))
    vectors = StoredVectors(exact, candidates.with_parameters(tuned))
    note = f"effort {tuned.effort}" + (f" of {tuned.lists}" if tuned.lists else "")
    note += f", re-ranked {tuned.rerank}" + ("" if report.at_10 >= recall else ", recall MISSED")
    note += f", {exact_ms / report.milliseconds:.1f}× exact fp16"
    each = memory_bytes(tuned, exact.count, exact.dim) / exact.count
    row(type_, "fp16", report.at_1, report.at_10, vectors, queries, each, seconds, note)
    return Measured(tuned, report, seconds)


def _asked(exact: ExactVectors, recall: float) -> tuple[Queries, float, Queries]:
    held_out, others = hold_out_twice(exact)
    return held_out, recall, others


def print_auto(
    exact: ExactVectors,
    recall: float,
    measured: dict[str, Measured],
    queries: NDArray[np.float32],
    exact_ms: float,
) -> None:
    """Let `auto` choose, and measure what it chose on all rows."""
    started = time.perf_counter()
    parameters, choices = choose_parameters(exact, "auto", IndexDesign(type="auto", recall=recall))
    taken = parameters.type if parameters else "exact"
    print(f"auto, {time.perf_counter() - started:.0f} s: {taken}")
    for one in choices:
        print(
            f"  {one.type}: recall {one.recall:.3f}, {one.latency_ms:.2f} ms, {one.memory_bytes / 1e6:.0f} MB: "
            f"{one.verdict}"
        )
    if parameters is None:
        return
    if taken not in measured:
        measured[taken] = build_and_measure(parameters.type, exact, recall, queries, exact_ms)
    report = measured[taken].recall
    again_ms = measure_vectors(StoredVectors(exact), hold_out(exact, 16)).milliseconds
    print(
        f"auto's {taken} on all rows: recall@10 {report.at_10:.3f} (wanted {recall}), {report.milliseconds:.2f} ms; "
        f"exact fp16 {min(exact_ms, again_ms):.1f} ms: {min(exact_ms, again_ms) / report.milliseconds:.0f}× (target 5×)"
    )


def main() -> None:
    """Run and print."""
    types = [name for name in INDEX_TYPES if name != "exact"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--types", nargs="*", choices=types, default=types)
    parser.add_argument("--leave-out", nargs="*", choices=types, default=[], help="such as hnsw, slow to build")
    arguments = parser.parse_args()
    print(describe_machine())
    print(
        f"{arguments.rows} descriptors of {arguments.dim} numbers, clustered, noise {arguments.noise}, seed 0; "
        f"recall wanted {arguments.recall}"
    )
    rows = clustered(arguments.rows, arguments.dim, noise=arguments.noise)
    draw = np.random.default_rng(1)
    queries = rows[draw.integers(0, len(rows), BATCH)] + 0.01 * draw.standard_normal((BATCH, arguments.dim))
    queries = (queries / np.linalg.norm(queries, axis=1, keepdims=True)).astype(np.float32)
    planned = {one.type: one for one in plan_indexes(*rows.shape, measure_machine(arguments.dim))}
    header = "| type | stored | recall@1 | recall@10 | ms, one | ms, of 64 | bytes | build s | |"
    print(f"{header}\n|---|---|---|---|---|---|---|---|---|")
    exact_against_the_machine(rows, queries, arguments.rounds)
    exact = ExactVectors.from_descriptors([rows], arguments.dim, "fp16")
    del rows
    gc.collect()
    exact_ms = measure_vectors(StoredVectors(exact), hold_out(exact, 64)).milliseconds
    measured: dict[str, Measured] = {}
    for type_ in arguments.types:
        if type_ in arguments.leave_out:
            continue
        print(f"building {type_}, predicted: {planned[type_].build_seconds:.0f} s", file=sys.stderr, flush=True)
        measured[type_] = build_and_measure(type_, exact, arguments.recall, queries, exact_ms)
        gc.collect()
    print_auto(exact, arguments.recall, measured, queries, exact_ms)


if __name__ == "__main__":
    main()
