"""GeoPairs of a million photos: seconds for table, positives and one epoch. Targets: minutes, below 4 GB."""

import math
import resource
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.machine import describe_machine
from retrieval.geo import Position
from retrieval.references.reference import Reference
from training.geopair import EpochBatches, Float32Array, GeoPairs, Int64Array, PhotoTable
from training.recipe_settings import GeoPairSettings

PHOTOS, QUERIES, PER_BATCH, DIM = 1_000_000, 10_000, 64, 512
_PHOTO = Path("street.jpg")
_METRES_PER_DEGREE = 111_195.0
# Drives along streets 100 m apart, a photo every 4 m, GPS off by some metres; each street driven several times.
_STEP_M, _STREET_M, _GAP_M, _DRIVES = 4.0, 5_000.0, 100.0, 8
_CENTRE = (48.14, 11.58)


def main() -> None:
    """Print seconds and peak memory."""
    print(f"geopair: {PHOTOS} references, {QUERIES} queries, batches of {PER_BATCH}; {describe_machine()}")
    started = time.perf_counter()
    for _ in city(PHOTOS):
        pass
    streaming = time.perf_counter() - started
    started = time.perf_counter()
    table = PhotoTable.from_references(city(PHOTOS))
    report("table", time.perf_counter() - started - streaming, f"{streaming:.1f} s of making the references left out")
    settings = GeoPairSettings(heading_window_deg=45.0, other_session_only=True, positive="random")
    started = time.perf_counter()
    pairs = geopairs(table, settings)
    report("who has a positive", time.perf_counter() - started, f"{len(pairs.trainable_queries)} photos have one")
    started = time.perf_counter()
    composed = pairs.compose_epoch(0)
    report("one epoch, random positives", time.perf_counter() - started, summary(composed))
    mined = geopairs(table, settings.model_copy(update={"positive": "nearest", "negative_mining": "partial"}))
    describe = Describer()
    started = time.perf_counter()
    composed = mined.compose_epoch(0, describe)
    seconds = time.perf_counter() - started - describe.seconds
    report(
        "one epoch, nearest positives, partial mining",
        seconds,
        f"{summary(composed)}, {describe.rows} photos described",
    )


def city(photos: int) -> Iterator[Reference]:
    """Yield photos of drives, one by one: a city of parallel streets in two directions."""
    random = np.random.default_rng(0)
    per_drive = int(_STREET_M / _STEP_M)
    template = Reference(id="", path=_PHOTO, position=None)
    for first in range(0, photos, per_drive):
        drive = first // per_drive
        street, turned = divmod(drive // _DRIVES, 2)
        backwards = drive % 2
        along = np.arange(per_drive) * _STEP_M
        across = np.full(per_drive, street * _GAP_M)
        east, north = (along, across) if turned else (across, along)
        noise = random.normal(0.0, 2.0, (2, per_drive))
        lat = _CENTRE[0] + (north + noise[0]) / _METRES_PER_DEGREE
        lon = _CENTRE[1] + (east + noise[1]) / (_METRES_PER_DEGREE * math.cos(math.radians(_CENTRE[0])))
        headings = (90.0 * turned + 180.0 * backwards + random.normal(0.0, 5.0, per_drive)) % 360.0
        rows = zip(lat.tolist(), lon.tolist(), headings.tolist(), strict=True)
        for at, (row_lat, row_lon, heading) in enumerate(rows):
            if first + at < photos:
                name, position = f"{drive}/{at}", Position(row_lat, row_lon)
                yield replace(template, id=name, position=position, heading_deg=heading, session=str(drive))


class Describer:
    """Random descriptors, and how long making them took."""

    def __init__(self) -> None:
        self.rows, self.seconds = 0, 0.0

    def __call__(self, rows: Int64Array) -> Float32Array:
        """Describe rows of the table."""
        started = time.perf_counter()
        described = np.random.default_rng(1).standard_normal((len(rows), DIM), np.float32)
        described /= np.linalg.norm(described, axis=1, keepdims=True)
        self.rows, self.seconds = len(rows), time.perf_counter() - started
        return described


def geopairs(table: PhotoTable, settings: GeoPairSettings) -> GeoPairs:
    mined = settings.negative_mining != "none"
    return GeoPairs(
        table,
        settings,
        queries_per_batch=PER_BATCH // 2 if mined else PER_BATCH,
        queries_per_epoch=QUERIES,
        seed=0,
        separate_negatives=mined,
    )


def summary(composed: EpochBatches) -> str:
    return f"{len(composed.batches)} batches, {composed.dropped} queries dropped"


def report(what: str, seconds: float, note: str) -> None:
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"  {what}: {seconds:.1f} s ({note}); peak memory so far {peak_gb:.2f} GB", flush=True)


if __name__ == "__main__":
    main()
