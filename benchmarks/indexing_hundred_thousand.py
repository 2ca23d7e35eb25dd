"""Indexing 100,000 photos of the toy town: throughput, memory, five kills, and a re-index after 1 % of them changed.

The photos are drawn once and then varied, 96 × 72 pixels, so that all files differ. The bundle is the shipped network
at an input of 48 × 48: its descriptors have 1280 numbers, but a hundred thousand take minutes. What the machine allows
is measured as in `indexing_throughput`, before and after the uninterrupted build.

Targets: throughput ≥ 0.9 of what the machine allows; peak memory < 2 GB; killed five times and resumed, the result is
the same byte for byte and at most one part of photos is described twice for each kill; re-indexed with 1 % changed
≤ 5 % of the time.
"""

import argparse
import csv
import hashlib
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from benchmarks.machine import describe_machine
from index_builder.describing import DEFAULT_BATCH_SIZE
from index_builder.parts import DEFAULT_PART_PHOTOS
from index_builder.update import UpdateSettings, build_index
from retrieval.artefact import record_files
from retrieval.bundle import INPUT_NAME, Bundle, BundleManifest, bundle_fingerprint, open_bundle
from retrieval.describer import Describer, Descriptors
from retrieval.images import Preprocessing, RgbImage, decode_image
from retrieval.index.folder import current_version
from retrieval.machine import available_cores
from retrieval.references import open_references
from sightfix.toy_town import town_for, write_survey

PHOTO_SIZE = (96, 72)
INPUT_SIDE = 48
DRAWN = 400
CHANGED = 0.01
NAME = "town"


class CountingDescriber(Describer):
    """Writes down after each batch how many photos it has described.

    Args:
        bundle: of the network.
        path: where.
    """

    def __init__(self, bundle: Bundle, path: Path) -> None:
        super().__init__(bundle)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._count = 0

    def describe(self, images: NDArray[np.uint8] | Sequence[RgbImage]) -> Descriptors:
        """As a describer does."""
        described = super().describe(images)
        self._count += len(images)
        os.pwrite(self._file, self._count.to_bytes(8, "little"), 0)
        return described


@dataclass
class Built:
    """One run of the child."""

    seconds: float
    described: int
    peak_mb: float = 0.0
    count: int = 0
    taken_over: int = 0
    canaries: int = 0


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--side", type=int, default=INPUT_SIDE, help="of the network's input")
    parser.add_argument("--child", nargs=4, type=Path, metavar=("CSV", "BUNDLE", "INDEXES", "COUNT"))
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    print(f"indexing {arguments.photos} photos, input side {arguments.side}; {describe_machine()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), arguments.photos, arguments.kills, arguments.side)


def measure(folder: Path, count: int, kills: int, side: int) -> None:
    """All measurements, in a folder of their own."""
    bundle = write_small_bundle(folder / "bundle", side)
    started = time.perf_counter()
    paths = write_photos(folder / "photos", count)
    print(f"  {count} photos written in {time.perf_counter() - started:.0f} s", flush=True)
    before = allowed_rate(bundle, paths)
    whole = run(folder, bundle, "whole")
    after = allowed_rate(bundle, paths)
    allowed = 2 / (1 / before + 1 / after)
    rate = count / whole.seconds
    print(
        f"  uninterrupted: {whole.seconds:.0f} s, {rate:.1f} photos/s; allowed {before:.1f} before, {after:.1f} after; "
        f"ratio {rate / allowed:.3f}; peak memory {whole.peak_mb:.0f} MB",
        flush=True,
    )
    if kills:
        resume(folder, bundle, whole, kills)
    changed = paths[:: round(1 / CHANGED)]
    for number, path in enumerate(changed):
        vary(Image.open(path), 1_000_000 + number).save(path, quality=88)
    again = run(folder, bundle, "whole")
    share = again.seconds / whole.seconds
    print(
        f"  re-indexed with {len(changed)} changed: {again.seconds:.1f} s, {share:.3f} of the time; "
        f"{again.described - 2 * again.canaries} described, {again.taken_over} taken over; "
        f"peak memory {again.peak_mb:.0f} MB",
        flush=True,
    )


def resume(folder: Path, bundle: Bundle, whole: Built, kills: int) -> None:
    """Kill a build at random moments, let the last run finish, and compare."""
    generator = random.Random(3)
    described = 0
    for kill in range(kills):
        seconds = whole.seconds / kills * generator.uniform(0.3, 0.9)
        described += run(folder, bundle, "killed", kill_after_s=seconds).described
        print(f"  kill {kill + 1} after {seconds:.0f} s; {described} described so far", flush=True)
    last = run(folder, bundle, "killed")
    # The gate describes its canaries and their middles.
    twice = described + last.described - whole.count - 2 * last.canaries
    print(
        f"  killed {kills} times: the files are {'the same' if same(folder, 'whole', 'killed') else 'DIFFERENT'}; "
        f"{twice} photos described twice (one part is {DEFAULT_PART_PHOTOS})",
        flush=True,
    )


def child(table: Path, bundle: Path, indexes: Path, counter: Path) -> None:
    """One build in a process of its own; says what it took, as JSON."""
    started = time.perf_counter()
    describer = CountingDescriber(open_bundle(bundle), counter)
    built = build_index(open_references(f"csv:{table}"), describer, indexes, NAME, UpdateSettings(keep=1))
    gate = built.update.gate
    told = Built(
        seconds=time.perf_counter() - started,
        described=0,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        count=built.manifest.count,
        taken_over=built.update.taken_over,
        canaries=gate.canaries if gate else 0,
    )
    print(json.dumps(told.__dict__))


def run(folder: Path, bundle: Bundle, name: str, kill_after_s: float | None = None) -> Built:
    """Run the child to its end, or kill it."""
    counter = folder / "count"
    counter.unlink(missing_ok=True)
    paths = [folder / "photos" / "photos.csv", bundle.folder, folder / name, counter]
    command = [sys.executable, "-m", "benchmarks.indexing_hundred_thousand", "--child", *map(str, paths)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        output, _ = process.communicate(timeout=kill_after_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        described = int.from_bytes(counter.read_bytes(), "little") if counter.exists() else 0
        return Built(kill_after_s or 0.0, described)
    if process.returncode:
        raise SystemExit(f"the build failed with {process.returncode}")
    built = Built(**json.loads(output))
    built.described = int.from_bytes(counter.read_bytes(), "little")
    return built


def same(folder: Path, *names: str) -> bool:
    """Whether vectors and references of some indexes are the same, byte for byte."""
    found = set()
    for name in names:
        index = folder / name / NAME
        version = index / "versions" / current_version(index)
        data = [(version / file).read_bytes() for file in ("vectors.faiss", "references.parquet")]
        found.add(tuple(hashlib.sha256(one).hexdigest() for one in data))
    return len(found) == 1


def allowed_rate(bundle: Bundle, paths: Sequence[Path]) -> float:
    """Photos a second by bare decoding on all cores and bare `session.run`; see `indexing_throughput`."""
    session = onnxruntime.InferenceSession(str(bundle.graph_path("fp32")), providers=["CPUExecutionProvider"])
    encoded = [path.read_bytes() for path in paths[:: max(1, len(paths) // 2000)]]
    images = [decode_image(data, bundle.preprocessing) for data in encoded[:DEFAULT_BATCH_SIZE]]
    batch = np.stack(images)
    session.run(None, {INPUT_NAME: batch})
    rates = []
    for _ in range(5):
        started = time.perf_counter()
        for data in encoded:
            decode_image(data, bundle.preprocessing)
        decode_s = (time.perf_counter() - started) / len(encoded)
        started = time.perf_counter()
        for _ in range(100):
            session.run(None, {INPUT_NAME: batch})
        network_s = (time.perf_counter() - started) / (100 * DEFAULT_BATCH_SIZE)
        rates.append(1.0 / (decode_s / available_cores() + network_s))
    return float(np.median(rates))


def write_photos(folder: Path, count: int) -> list[Path]:
    """Draw some photos, write variations of them, and list them in a CSV."""
    survey = write_survey(town_for(DRAWN), folder.parent / "survey", references=DRAWN, queries=4)
    drawn = [(Image.open(one.path).convert("RGB"), one) for one in open_references(f"csv:{survey.references_csv}")]
    small = [(image.resize((112, 84), Image.Resampling.BOX), one) for image, one in drawn]
    folder.mkdir()
    paths = []
    with (folder / "photos.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "lat", "lon", "heading"])
        for number in range(count):
            image, reference = small[number % len(small)]
            path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
            path.parent.mkdir(exist_ok=True)
            vary(image, number).save(path, quality=88)
            assert reference.position is not None, "the toy town knows where its photos were taken"
            shift = number // len(small) * 1e-6
            lat, lon = reference.position.lat + shift, reference.position.lon
            table.writerow([path.relative_to(folder), lat, lon, reference.heading_deg])
            paths.append(path)
    return paths


def vary(image: Image.Image, seed: int) -> Image.Image:
    """Another crop in another light, `PHOTO_SIZE`."""
    generator = random.Random(seed)
    left = generator.randint(0, image.width - PHOTO_SIZE[0])
    top = generator.randint(0, image.height - PHOTO_SIZE[1])
    gains = [generator.uniform(0.7, 1.2) for _ in range(3)]
    curve = [min(255, round(value * gain)) for gain in gains for value in range(256)]
    return image.crop((left, top, left + PHOTO_SIZE[0], top + PHOTO_SIZE[1])).point(curve)


def write_small_bundle(folder: Path, side: int) -> Bundle:
    """The shipped network for another input."""
    shipped = open_bundle()
    folder.mkdir(parents=True)
    graph = onnx.load(shipped.graph_path("fp32"))
    height, width = graph.graph.input[0].type.tensor_type.shape.dim[1:3]
    height.dim_value = width.dim_value = side
    del graph.graph.value_info[:]
    onnx.save(graph, folder / "model.onnx")
    files = record_files(folder, ["model.onnx"])
    sides = {"height": side, "width": side}
    preprocessing = Preprocessing.model_validate({**shipped.preprocessing.model_dump(), **sides})
    changed = {
        "name": "small",
        "graphs": {"fp32": "model.onnx"},
        "files": files,
        "preprocessing": preprocessing,
        "fingerprint": bundle_fingerprint(files["model.onnx"], preprocessing),
        "parity": None,
    }
    BundleManifest.model_validate({**shipped.manifest.model_dump(), **changed}).write(folder)
    return open_bundle(folder)


if __name__ == "__main__":
    main()
