"""Twenty changes of the index in a minute of load: every answer is whole and of one version, and none fails.

    python -m benchmarks.serving.swaps [--seconds 60] [--swaps 20]

Three versions of the same photos lie in three countries, each with other references: an answer that mixed two versions
would show it in its positions, its references, its size or its `index.version`. Exit status 1 at any such answer.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from benchmarks.machine import describe_machine
from index_builder.update import build_index
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from retrieval.index.folder import activate_version, current_version
from tests.places import make_places
from tests.running_server import RunningServer, running_server

LATITUDES, CLIENTS = (10.0, 20.0, 30.0), 16
JPEG = {"Content-Type": "image/jpeg"}


@dataclass
class Swapped:
    """What came back: answers by status and version, what was wrong, and how long answers and changes took."""

    statuses: Counter[int] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    swaps: list[float] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    """Measure; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--swaps", type=int, default=20)
    given = parser.parse_args(arguments)
    print(f"{given.swaps} changes of the version in {given.seconds:g} s, {describe_machine()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        seen = swaps_under_load(Path(folder), given.seconds, given.swaps)
    p50, p99 = np.percentile(seen.seconds, [50, 99]) * 1e3
    print(f"  {len(seen.seconds):,} answers: {dict(seen.statuses)}; p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    print(f"  {len(seen.swaps)} changes over HTTP and by file, {np.median(seen.swaps) * 1e3:.0f} ms each (median)")
    print(f"  by version: {sorted(seen.versions.values())}; {len(seen.wrong)} failed or mixed")
    for wrong in seen.wrong[:10]:
        print(f"FAULT {wrong}")
    return 1 if seen.wrong or len(seen.swaps) < given.swaps else 0


def swaps_under_load(folder: Path, seconds: float, swaps: int) -> Swapped:
    """Load a server, change its version again and again, and look at every answer."""
    describer = Describer(open_bundle())
    truth: dict[str, tuple[float, int]] = {}
    photos: list[bytes] = []
    for number, latitude in enumerate(LATITUDES):
        places = make_places(folder / "roots", 12 + number, origin=(latitude, 10.0))
        build_index(places, describer, folder / "indexes", "places")
        truth[current_version(folder / "indexes" / "places")] = (latitude, len(places))
        photos = [row.path.read_bytes() for row in places.rows[:12]]
    seen = Swapped()
    given = ["--indexes", str(folder / "indexes")]
    with running_server(folder / "log", given, {"SIGHTFIX_WATCH_INTERVAL_S": "0.2"}) as server:
        server.wait_until_ready()
        stop = threading.Event()
        clients = [
            threading.Thread(target=_client, args=(server, photos[number % 12], number % 12, truth, seen, stop))
            for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        try:
            _swap(server, folder / "indexes" / "places", list(truth), seen, seconds, swaps)
        finally:
            stop.set()
            for client in clients:
                client.join(60)
        if "Traceback" in (folder / "log").read_text():
            seen.wrong.append("a traceback in the log")
    return seen


def _client(
    server: RunningServer,
    photo: bytes,
    number: int,
    truth: dict[str, tuple[float, int]],
    seen: Swapped,
    stop: threading.Event,
) -> None:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        while not stop.is_set():
            begun = time.perf_counter()
            response = client.post("/localize?top_k=20", content=photo, headers=JPEG)
            seen.seconds.append(time.perf_counter() - begun)
            seen.statuses[response.status_code] += 1
            if response.status_code != 200:
                seen.wrong.append(f"{response.status_code} {response.text[:200]}")
                continue
            answer = response.json()
            version = answer["index"]["version"]
            latitude, size = truth[version]
            seen.versions[version] += 1
            found = {round(match["lat"]) for match in answer["matches"]}
            best = answer["matches"][0]["reference_id"]
            whole = answer["index"]["size"] == len(answer["matches"]) == size and found == {round(latitude)}
            if not whole or best != f"photos/{number:04d}.jpg" or round(answer["fix"]["lat"]) != round(latitude):
                seen.wrong.append(f"mixed: {response.text[:500]}")


def _swap(server: RunningServer, index: Path, versions: list[str], seen: Swapped, seconds: float, swaps: int) -> None:
    """Change the version over HTTP and by the file CURRENT in turn, and wait until it serves."""
    begun = time.monotonic()
    for turn in range(swaps):
        time.sleep(max(0.0, begun + (turn + 0.5) * seconds / swaps - time.monotonic()))
        version = versions[turn % len(versions)]
        asked = time.perf_counter()
        if turn % 2:
            activate_version(index, version)
            while httpx.get(f"{server.url}/info", timeout=60).json()["index"]["version"] != version:
                time.sleep(0.05)
        else:
            body = {"version": version}
            httpx.post(f"{server.url}/indexes/places/activate", json=body, timeout=60).raise_for_status()
        seen.swaps.append(time.perf_counter() - asked)
    time.sleep(max(0.0, begun + seconds - time.monotonic()))


if __name__ == "__main__":
    sys.exit(main())
