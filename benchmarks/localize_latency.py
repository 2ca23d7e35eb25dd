"""What HTTP costs: p50 of POST /localize minus decode, describe and search measured in this process. Target: ≤ 5 ms.

One client, one photo at a time, over a kept-alive loopback connection. Rounds of both are interleaved in one run.
"""

import argparse
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks.indexing_throughput import PHOTOS, Repeated
from benchmarks.machine import describe_machine
from index_builder.building import build_index
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from retrieval.images import decode_image
from retrieval.place_index import PlaceIndex
from tests.running_server import running_server

ROUNDS, CALLS = 8, 40


def main() -> None:
    """Print one line for each photo."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    root = parser.parse_args().photos
    describer = Describer(open_bundle())
    print(f"localize latency, {ROUNDS} × {CALLS} calls each; {describe_machine()}")
    with tempfile.TemporaryDirectory() as folder:
        indexes = Path(folder) / "indexes"
        campus = sorted((root / "bgu_campus" / "images").glob("*.jpg"))
        build_index(Repeated(campus, 1, root), describer, indexes, "campus")
        index = PlaceIndex.open(indexes / "campus")
        with running_server(Path(folder) / "log", ["--indexes", str(indexes)]) as server:
            server.wait_until_ready()
            with httpx.Client(base_url=server.url) as client:
                for name in ("bgu_campus/images/20251222_094711.jpg", "lund_exif/images/05.jpg"):
                    measure(name, (root / name).read_bytes(), client, describer, index)


def measure(name: str, photo: bytes, client: httpx.Client, describer: Describer, index: PlaceIndex) -> None:
    """Measure one photo and print a line."""
    over_http, parts = [], []
    for _ in range(ROUNDS):
        for _ in range(CALLS):
            started = time.perf_counter()
            client.post("/localize", content=photo, headers={"Content-Type": "image/jpeg"}).raise_for_status()
            over_http.append(time.perf_counter() - started)
        for _ in range(CALLS):
            started = time.perf_counter()
            image = decode_image(photo, describer.bundle.preprocessing)
            decoded = time.perf_counter()
            descriptors = describer.describe(image[None])
            described = time.perf_counter()
            index.search(descriptors, 10)
            parts.append((decoded - started, described - decoded, time.perf_counter() - described))
    decode, describe, search = np.median(np.array(parts), axis=0) * 1e3
    p50, p95 = np.percentile(over_http, [50, 95]) * 1e3
    print(
        f"  {name}: HTTP p50 {p50:.2f} ms (p95 {p95:.2f}); in-process decode {decode:.2f} + describe {describe:.2f} + "
        f"search {search:.2f} ms; difference {p50 - decode - describe - search:.2f} ms"
    )


if __name__ == "__main__":
    main()
