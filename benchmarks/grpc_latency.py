"""What gRPC costs beside HTTP: p50 of Localize ÷ p50 of POST /localize for the same photo. Target: ≤ 1 with httpx.

One server process, one photo at a time over kept connections, all in turn in one run; who begins alternates. HTTP is
asked twice: with httpx, which clients use, and with the standard library's client, the cheapest there is in Python. The
last line is about an almost empty call.
"""

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np

from benchmarks.indexing_throughput import PHOTOS, Repeated
from benchmarks.machine import describe_machine
from index_builder.update import build_index
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from service.grpc.generated import localization_pb2 as pb
from service.grpc.generated.localization_pb2_grpc import LocalizationServiceStub
from tests.running_server import RunningServer, running_server

TURNS, WARM_UP = 400, 5
JPEG = {"Content-Type": "image/jpeg"}
NAMES = ("bgu_campus/images/20251222_094711.jpg", "lund_exif/images/05.jpg")


def main() -> None:
    """Print a line for each photo, and one for an almost empty call."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=Path, default=PHOTOS)
    parser.add_argument("--turns", type=int, default=TURNS)
    options = parser.parse_args()
    machine = f"{describe_machine()}, grpcio {grpc.__version__}"
    print(f"gRPC beside HTTP, {options.turns} calls of each, target ≤ 1; {machine}")
    with tempfile.TemporaryDirectory() as folder:
        indexes = Path(folder) / "indexes"
        campus = sorted((options.photos / "bgu_campus" / "images").glob("*.jpg"))
        build_index(Repeated(campus, 1, options.photos), Describer(open_bundle()), indexes, "campus")
        with running_server(Path(folder) / "log", ["--indexes", str(indexes), "--grpc-port", "0"]) as server:
            server.wait_until_ready()
            measure(server, options.photos, options.turns)


def measure(server: RunningServer, root: Path, turns: int) -> None:
    """Take turns on one server."""
    address = re.search(r"gRPC at (\S+)", server.log.read_text())
    assert address is not None
    plain = HTTPConnection(urlsplit(server.url).netloc)
    with httpx.Client(base_url=server.url) as client, grpc.insecure_channel(address.group(1)) as channel:
        stub = LocalizationServiceStub(channel)
        for name in NAMES:
            photo = (root / name).read_bytes()
            compare(
                name,
                {
                    "httpx": partial(client.post, "/localize", content=photo, headers=JPEG),
                    "http.client": partial(ask, plain, "POST", "/localize", photo, JPEG),
                    "gRPC": partial(stub.Localize, pb.LocalizeRequest(image=photo)),
                },
                turns,
            )
        compare(
            "info",
            {
                "httpx": partial(client.get, "/info"),
                "http.client": partial(ask, plain, "GET", "/info", None, {}),
                "gRPC": partial(stub.GetServerInfo, pb.GetServerInfoRequest()),
            },
            turns,
        )


def ask(http: HTTPConnection, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> bytes:
    """One request; the body of its answer."""
    http.request(method, path, body, headers)
    response = http.getresponse()
    assert response.status == 200
    return response.read()


def compare(name: str, calls: dict[str, Callable[[], object]], turns: int) -> None:
    """Measure all in turn and print a line."""
    taken: dict[str, list[float]] = {key: [] for key in calls}
    for turn in range(turns + WARM_UP):
        for key in calls if turn % 2 else reversed(calls):
            started = time.perf_counter()
            calls[key]()
            if turn >= WARM_UP:
                taken[key].append(time.perf_counter() - started)
    p50 = {key: float(np.median(times)) * 1e3 for key, times in taken.items()}
    rpc = p50["gRPC"]
    print(
        f"  {name}: p50 " + ", ".join(f"{key} {value:.2f} ms" for key, value in p50.items()) + "; gRPC ÷ httpx "
        f"{rpc / p50['httpx']:.3f}, gRPC ÷ http.client {rpc / p50['http.client']:.3f}"
    )


if __name__ == "__main__":
    main()
