"""fp32, fp16 and int8 of the default bundle on bgu_campus: recall, cosine to fp32, size and time, on two CPU runtimes.

Ranges and checks come from day photos of phone A: in both protocols they are in the database, never queries.
Times are medians of rounds in which all graphs, runtimes and batch sizes take turns. Needs ../shared/data and OpenVINO.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.campus import PROTOCOLS, campus_references, describe_campus
from benchmarks.describer_overhead import in_turn
from benchmarks.machine import describe_machine
from export.exporting import ExportSettings, write_export
from export.precision import cosines
from retrieval.bundle import Bundle, Precision
from retrieval.bundle.exportable import bundle_model
from retrieval.describer import Describer
from retrieval.engines.engine import Provider
from retrieval.errors import ProviderUnavailableError
from retrieval.evaluation import Bootstrap, Protocol, exact_ranking, first_hits
from retrieval.evaluation.eval_set import EvalSet, Truth

GRAPHS: tuple[tuple[Precision, Provider], ...] = (
    ("fp32", "cpu"),
    ("fp32", "openvino"),
    ("fp16", "cpu"),
    ("fp16", "openvino"),
    ("int8", "cpu"),
    ("int8", "openvino"),
)
RUNTIMES = {"cpu": "ONNX Runtime", "openvino": "OpenVINO"}
TURNS = {1: 60, 16: 15}
RADIUS_M = 25.0
TARGET_SPEED, TARGET_LOSS = 1.3, 0.01
Key = tuple[Precision, Provider]


@dataclass(frozen=True)
class Found:
    """First right matches of the counted queries of one protocol."""

    first: NDArray[np.int64]
    groups: NDArray[np.int64]
    chance: tuple[float, float]

    def hits(self, n: int) -> NDArray[np.float64]:
        """(Q,) 1 where a true match is among the first n."""
        return (self.first < n).astype(np.float64)


def main() -> None:
    """Print two Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="fp32 bundle to lower; the one shipped by default")
    print(f"precisions of the default bundle on bgu_campus, {RADIUS_M:g} m; {describe_machine()}\n")
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder) / "bundle", parser.parse_args().bundle)
        for precision, report in bundle.manifest.precisions.items():
            print(
                f"{precision}: checked on {report.images} photos, {json.dumps(report.model_dump(exclude={'recall'}))}"
            )
        describers = open_all(bundle)
        milliseconds = measure_times(describers)
        campus = {key: describe_campus(describer) for key, describer in describers.items()}
        found = {key: find(one.descriptors) for key, one in campus.items()}
        queries = query_rows()
        print_recall(found)
        print_speed(
            bundle,
            milliseconds,
            {
                key: cosines(campus[GRAPHS[0]].descriptors[queries], one.descriptors[queries])
                for key, one in campus.items()
            },
        )
        print_verdict(found, milliseconds)


def open_all(bundle: Bundle) -> dict[Key, Describer]:
    """A describer for each graph and runtime; one that this processor does not allow is named and left out."""
    describers = {}
    for key in GRAPHS:
        try:
            describers[key] = Describer(bundle, precision=key[0], provider=key[1], max_batch=16)
        except ProviderUnavailableError as error:
            print(f"left out: {key[0]}, {RUNTIMES[key[1]]}: {error}")
    return describers


def make_bundle(folder: Path, source: Path | None) -> Bundle:
    """The bundle with all three graphs, each checked."""
    photos = [one for one in campus_references() if "phoneA" in one.session and "day" in one.session]
    return write_export(bundle_model(source), folder, ExportSettings(precisions=("fp16", "int8"), photos=photos))


def query_rows() -> NDArray[np.int64]:
    """Rows of the photos that are a query of either protocol; none of them gave ranges."""
    sessions = [one.session for one in campus_references()]
    return np.flatnonzero([any(queries in session for _, queries in PROTOCOLS.values()) for session in sessions])


def find(descriptors: NDArray[np.float32]) -> dict[str, Found]:
    """Rank the database for each query, by protocol."""
    references = campus_references()
    found = {}
    for name, (database, queries) in PROTOCOLS.items():
        rows = [np.flatnonzero([part in one.session for one in references]) for part in (database, queries)]
        photos = EvalSet(name, *(tuple(references[row] for row in part) for part in rows))
        truth = Truth.of(photos, Protocol(radii_m=(RADIUS_M,), recall_at=(1, 5)))
        ranked, _ = exact_ranking(descriptors[rows[0]], descriptors[rows[1]], 5)
        counted = truth.counted[0]
        chance = truth.chance(0, [1, 5])
        found[name] = Found(
            first_hits(truth.ground, ranked, RADIUS_M)[counted],
            truth.groups[counted],
            (float(chance[0]), float(chance[1])),
        )
    return found


def measure_times(describers: Mapping[Key, Describer]) -> dict[int, dict[Key, float]]:
    """Milliseconds a photo by batch size: everything takes turns."""
    size = next(iter(describers.values())).bundle.preprocessing
    rng = np.random.default_rng(0)
    times = {}
    for batch, turns in TURNS.items():
        images = rng.integers(0, 256, (batch, size.height, size.width, 3), np.uint8)
        taken = in_turn([partial(describer.describe, images) for describer in describers.values()], turns)
        times[batch] = {key: 1e3 * seconds / batch for key, seconds in zip(describers, taken, strict=True)}
    return times


def print_recall(found: Mapping[Key, dict[str, Found]]) -> None:
    """Recall with intervals, and paired differences from fp32 in ONNX Runtime."""
    print("\n| graph, runtime | protocol | R@1 | change | R@5 | change |\n|---|---|---|---|---|---|")
    for key, protocols in found.items():
        for name, ours in protocols.items():
            before = found[GRAPHS[0]][name]
            cells = []
            for n, chance in zip((1, 5), ours.chance, strict=True):
                recall = ours.hits(n)
                cells.append(f"{_interval(recall, ours.groups)}; chance {100 * chance:.1f}")
                cells.append("" if key == GRAPHS[0] else _interval(recall - before.hits(n), ours.groups, sign="+"))
            print(f"| {key[0]}, {RUNTIMES[key[1]]} | {name} | {' | '.join(cells)} |")


def _interval(values: NDArray[np.float64], groups: NDArray[np.int64], sign: str = "") -> str:
    low, high = Bootstrap().mean_interval(values[:, None], groups)[:, 0]
    return f"{100 * values.mean():{sign}.1f} ({100 * low:{sign}.1f} to {100 * high:{sign}.1f})"


def print_speed(
    bundle: Bundle, milliseconds: Mapping[int, Mapping[Key, float]], agreement: Mapping[Key, NDArray[np.float64]]
) -> None:
    """Cosine to fp32 on the queries, size of the file, time, and how many times as fast as fp32 in ONNX Runtime."""
    batches = list(milliseconds)
    print("\n| graph, runtime | worst cosine | mean | MB | " + " | ".join(f"ms, batch {n}" for n in batches), end="")
    print(" | " + " | ".join(f"times as fast, batch {n}" for n in batches) + " |\n|" + "---|" * (4 + 2 * len(batches)))
    for key, similar in agreement.items():
        size = bundle.graph_path(key[0]).stat().st_size / 1e6
        times = [f"{milliseconds[n][key]:.1f}" for n in batches]
        ratios = [f"{milliseconds[n][GRAPHS[0]] / milliseconds[n][key]:.2f}" for n in batches]
        cells = [f"{similar.min():.5f}", f"{similar.mean():.5f}", f"{size:.1f}", *times, *ratios]
        print(f"| {key[0]}, {RUNTIMES[key[1]]} | {' | '.join(cells)} |")


def print_verdict(found: Mapping[Key, dict[str, Found]], milliseconds: Mapping[int, Mapping[Key, float]]) -> None:
    """Whether some graph is fast enough at a small enough loss."""
    print(f"\ntarget: at least {TARGET_SPEED} times as fast at a recall@1 at most {100 * TARGET_LOSS:g} point lower")
    for key, protocols in list(found.items())[1:]:
        ratio = min(times[GRAPHS[0]] / times[key] for times in milliseconds.values())
        change = min(float((ours.hits(1) - found[GRAPHS[0]][name].hits(1)).mean()) for name, ours in protocols.items())
        verdict = "reached" if ratio >= TARGET_SPEED and change >= -TARGET_LOSS else "not reached"
        print(f"  {key[0]}, {RUNTIMES[key[1]]}: {ratio:.2f} times, {100 * change:+.1f} points at worst: {verdict}")


if __name__ == "__main__":
    main()
