"""`/localize` under closed-loop load ÷ a bare loop over the same photos on the same cores, and a LitServe peer.

    python -m benchmarks.serving.throughput [--litserve PYTHON]

32 clients send raw 480×640 JPEGs. The bare loop decodes 32 photos on all cores, describes them in one `session.run`
and searches the index once, over and over. Rounds are interleaved in one run. Target: ≥ 0.85.

A server is stopped (SIGSTOP) while it is not its turn: LitServe's processes poll, a fifth of a core for nothing.
"""

import argparse
import asyncio
import contextlib
import io
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.indexing_throughput import PHOTOS, Repeated
from benchmarks.machine import describe_machine
from benchmarks.serving.load import Load, closed_loop, multipart_request, raw_request
from index_builder.update import build_index
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from retrieval.images import decode_image
from retrieval.index.place_index import PlaceIndex
from retrieval.machine import available_cores
from tests.running_server import running_server

CLIENTS, BATCH = 32, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--litserve", help="a Python that has litserve, onnxruntime and faiss")
    arguments = parser.parse_args()
    campus = sorted((arguments.photos / "bgu_campus" / "images").glob("*.jpg"))
    photos = [as_vga(path) for path in campus[:: len(campus) // 64][:64]]
    describer = Describer(open_bundle())
    print(f"serving throughput, {arguments.rounds} rounds of {arguments.seconds:g} s; {describe_machine()}")
    with tempfile.TemporaryDirectory() as folder:
        indexes = Path(folder) / "indexes"
        built = build_index(Repeated(campus, 1, arguments.photos), describer, indexes, "campus")
        index = PlaceIndex.open(indexes / "campus")
        with running_server(Path(folder) / "log", ["--indexes", str(indexes)]) as server:
            server.wait_until_ready()
            port = int(server.url.rpartition(":")[2])
            requests = [raw_request("/localize", photo) for photo in photos]
            with contextlib.ExitStack() as peers:
                runs: dict[str, Callable[[], float]] = {
                    "bare": lambda: bare(photos, describer, index, arguments.seconds),
                    "sightfix": peers.enter_context(
                        only_in_turn(
                            lambda signum: os.kill(server.process.pid, signum),
                            lambda: under_load(port, requests, arguments.seconds),
                        )
                    ),
                }
                if arguments.litserve:
                    peer = peers.enter_context(litserve_peer(arguments.litserve, describer, built, Path(folder)))
                    forms = [multipart_request("/predict", photo, "image") for photo in photos]
                    runs["litserve"] = peers.enter_context(
                        only_in_turn(peer.signal, lambda: under_load(peer.port, forms, arguments.seconds))
                    )
                report(runs, arguments.rounds)


@contextlib.contextmanager
def only_in_turn(send: Callable[[int], None], run: Callable[[], float]) -> Iterator[Callable[[], float]]:
    """The run of a server that takes nothing of the machine before and after it."""

    def awake() -> float:
        send(signal.SIGCONT)
        try:
            return run()
        finally:
            send(signal.SIGSTOP)

    send(signal.SIGSTOP)
    try:
        yield awake
    finally:
        send(signal.SIGCONT)


def report(runs: dict[str, Callable[[], float]], rounds: int) -> None:
    """Interleave rounds, print medians and ratios."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # warm
    for _ in range(rounds):
        for name, run in runs.items():
            rates[name].append(run())
    for name, found in rates.items():
        print(f"  {name:9} {np.median(found):7.1f} photos/s; ÷ bare {over(found, rates['bare'])}")
    if "litserve" in rates:
        print(f"  sightfix ÷ litserve {over(rates['sightfix'], rates['litserve'])}")


def over(found: list[float], reference: list[float]) -> str:
    """Median and range of the ratios round by round."""
    ratios = np.array(found) / np.array(reference)
    return f"{np.median(ratios):.3f} ({ratios.min():.3f}–{ratios.max():.3f})"


def as_vga(path: Path) -> bytes:
    """A campus photo as a camera of 640×480 would send it."""
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").resize((480, 640), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def bare(photos: list[bytes], describer: Describer, index: PlaceIndex, seconds: float) -> float:
    """Photos a second of decode, one session.run and one search, with nothing around them."""
    preprocessing = describer.bundle.preprocessing
    done, begun = 0, time.perf_counter()
    with ThreadPoolExecutor(available_cores()) as pool:
        while time.perf_counter() - begun < seconds:
            batch = [photos[(done + turn) % len(photos)] for turn in range(BATCH)]
            images = np.stack(list(pool.map(lambda photo: decode_image(photo, preprocessing), batch)))
            index.search(describer.describe(images), 10)
            done += BATCH
    return done / (time.perf_counter() - begun)


def under_load(port: int, requests: list[bytes], seconds: float) -> float:
    """Good answers a second of a server; anything else than 200 stops the benchmark."""
    load: Load = asyncio.run(closed_loop("127.0.0.1", port, requests, CLIENTS, seconds))
    wrong = {status for status, _ in load.latencies} - {200}
    if wrong:
        raise SystemExit(f"the server answered {wrong}")
    return load.rate


class litserve_peer:  # noqa: N801
    """The peer as a process, while the block lasts."""

    def __init__(self, python: str, describer: Describer, built: object, folder: Path) -> None:
        self.port = 18_931
        vectors = next(folder.glob("indexes/campus/versions/*/vectors.faiss"))
        script = Path(__file__).with_name("litserve_peer.py")
        model = describer.bundle.graph_path("fp32")
        self._log = (folder / "litserve.log").open("w")
        self._command = [python, str(script), str(model), str(vectors), str(self.port)]
        self._path = folder / "litserve.log"

    def signal(self, signum: int) -> None:
        """Send a signal to all its processes."""
        os.killpg(self._process.pid, signum)

    def __enter__(self) -> "litserve_peer":
        self._process = subprocess.Popen(
            self._command, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True
        )
        for _ in range(240):
            if "Uvicorn running" in self._path.read_text() or answers(self.port):
                return self
            if self._process.poll() is not None:
                break
            time.sleep(0.5)
        raise SystemExit(f"the peer did not start:\n{self._path.read_text()}")

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
        self._log.close()


def answers(port: int) -> bool:
    """Whether something is healthy on a port."""
    import httpx

    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    main()
