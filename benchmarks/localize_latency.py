"""What HTTP costs: p50 of POST /localize minus decode, describe and search measured in this process. Target: ≤ 3 ms.

One client, one photo at a time, over a kept-alive loopback connection: httpx, and the standard library's http.client,
which does less and so shows more of the server's own share. Rounds of all are interleaved in one run.
"""

import argparse
import http.client
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from benchmarks.indexing_throughput import PHOTOS, Repeated
from benchmarks.machine import describe_machine
from index_builder.update import build_index
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from retrieval.images import decode_image
from retrieval.index.place_index import PlaceIndex
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
            plain = http.client.HTTPConnection(server.url.removeprefix("http://").rstrip("/"))
            with httpx.Client(base_url=server.url) as client:
                senders = {
                    "httpx": lambda photo: by_httpx(client, photo),
                    "http.client": lambda photo: bare(plain, photo),
                }
                for name in ("bgu_campus/images/20251222_094711.jpg", "lund_exif/images/05.jpg"):
                    measure(name, (root / name).read_bytes(), senders, describer, index)


def by_httpx(client: httpx.Client, photo: bytes) -> None:
    """One photo."""
    client.post("/localize", content=photo, headers={"Content-Type": "image/jpeg"}).raise_for_status()


def bare(connection: http.client.HTTPConnection, photo: bytes) -> None:
    """One photo."""
    connection.request("POST", "/localize", photo, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    answer.read()
    if answer.status != 200:
        raise RuntimeError(f"answered {answer.status}")


def measure(
    name: str, photo: bytes, senders: dict[str, Callable[[bytes], None]], describer: Describer, index: PlaceIndex
) -> None:
    """Measure one photo and print a line for each client."""
    times: dict[str, list[float]] = {sender: [] for sender in senders}
    parts = []
    for _ in range(ROUNDS):
        for sender, send in senders.items():
            for _ in range(CALLS):
                started = time.perf_counter()
                send(photo)
                times[sender].append(time.perf_counter() - started)
        for _ in range(CALLS):
            started = time.perf_counter()
            image = decode_image(photo, describer.bundle.preprocessing)
            decoded = time.perf_counter()
            descriptors = describer.describe(image[None])
            described = time.perf_counter()
            index.search(descriptors, 10)
            parts.append((decoded - started, described - decoded, time.perf_counter() - described))
    decode, describe, search = np.median(np.array(parts), axis=0) * 1e3
    print(f"  {name}: in-process decode {decode:.2f} + describe {describe:.2f} + search {search:.2f} ms")
    for sender, seconds in times.items():
        p50, p95 = np.percentile(seconds, [50, 95]) * 1e3
        overhead = p50 - decode - describe - search
        print(f"    {sender}: p50 {p50:.2f} ms (p95 {p95:.2f}); difference {overhead:.2f} ms", flush=True)


if __name__ == "__main__":
    main()
