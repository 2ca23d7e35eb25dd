"""Twice as many photos as the server can answer, at a constant rate; then none, and one; then clients that never wait.

    python -m benchmarks.serving.overload [--seconds 120] [--deadline-ms 1000]

Every photo has a deadline. Wanted: the p99 of those accepted within it, all others refused with 429 and `Retry-After`,
memory flat, and full recovery within 2 seconds. Then 64 clients ask again as soon as they are refused, against what
they were told: wanted is that most of the capacity still goes into answers, and that calm follows at once.
"""

import argparse
import asyncio
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks.indexing_throughput import PHOTOS, Repeated
from benchmarks.machine import describe_machine
from benchmarks.serving.load import Load, closed_loop, constant_rate, raw_request
from benchmarks.serving.throughput import as_vga
from index_builder.update import build_index
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from tests.running_server import RunningServer, running_server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--deadline-ms", type=float, default=1000.0)
    parser.add_argument("--overload", type=float, default=2.0)
    arguments = parser.parse_args()
    campus = sorted((arguments.photos / "bgu_campus" / "images").glob("*.jpg"))
    photos = [as_vga(path) for path in campus[:: len(campus) // 64][:64]]
    print(f"overload, {describe_machine()}")
    with tempfile.TemporaryDirectory() as folder:
        indexes = Path(folder) / "indexes"
        build_index(Repeated(campus, 1, arguments.photos), Describer(open_bundle()), indexes, "campus")
        with running_server(Path(folder) / "log", ["--indexes", str(indexes)]) as server:
            server.wait_until_ready()
            measure(server, photos, arguments.seconds, arguments.deadline_ms, arguments.overload)


def measure(server: RunningServer, photos: list[bytes], seconds: float, deadline_ms: float, overload: float) -> None:
    """Find the capacity, exceed it, and watch the recovery."""
    port = int(server.url.rpartition(":")[2])
    requests = [raw_request("/localize", photo, f"X-Deadline-Ms: {deadline_ms:g}\r\n") for photo in photos]
    asyncio.run(closed_loop("127.0.0.1", port, requests, 64, 5.0))  # the largest batches, for their memory
    capacity = asyncio.run(closed_loop("127.0.0.1", port, requests, 16, 10.0)).rate
    before = memory_mb(server)
    load: Load = asyncio.run(constant_rate("127.0.0.1", port, requests, overload * capacity, seconds))
    after = memory_mb(server)
    recovery = recover(server, photos[0])
    accepted, counts = np.array(load.of(200)) * 1e3, by_status(load)
    p50, p99 = np.percentile(accepted, [50, 99]) if len(accepted) else (np.nan, np.nan)
    print(f"  capacity {capacity:.1f} photos/s; {overload:g} times that for {seconds:g} s: answers by status {counts}")
    rate = len(accepted) / load.seconds
    print(f"  accepted: {rate:.1f}/s, p50 {p50:.0f} ms, p99 {p99:.0f} ms, deadline {deadline_ms:g} ms")
    print(f"  refused: p99 {np.percentile(load.of(429), 99) * 1e3:.0f} ms" if 429 in counts else "  none refused")
    print(f"  resident memory {before:.0f} MB before, {after:.0f} MB after; recovered in {recovery:.2f} s")
    for name, clients in (("64 clients that never wait", 64), ("then 16", 16)):
        told(name, asyncio.run(closed_loop("127.0.0.1", port, requests, clients, 10.0)), capacity)


def told(name: str, load: Load, capacity: float) -> None:
    """Print what came of clients that ask again at once."""
    print(
        f"  {name}: {load.rate:.1f} answered/s, {load.rate / capacity:.2f} of the capacity; by status {by_status(load)}"
    )


def by_status(load: Load) -> dict[int, int]:
    """How many answers there were of each status."""
    return {status: len(load.of(status)) for status in sorted({status for status, _ in load.latencies})}


def memory_mb(server: RunningServer) -> float:
    """Resident memory of the server's process."""
    pages = int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def recover(server: RunningServer, photo: bytes) -> float:
    """Seconds until three photos in a row are answered."""
    begun, good = time.perf_counter(), 0
    while good < 3:
        response = httpx.post(
            f"{server.url}/localize", content=photo, headers={"Content-Type": "image/jpeg"}, timeout=60
        )
        assert response.status_code == 200 or response.headers["retry-after"]
        good = good + 1 if response.status_code == 200 else 0
        if time.perf_counter() - begun > 30:
            break
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
