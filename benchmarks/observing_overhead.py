"""What watching costs: p50 of POST /localize bare, with metrics, with traces, taken in turns in one run. Target: ≤ 2 %.

The applications are called without sockets, so that nothing hides the difference. Below, the same without a photo: what
the middleware and the counting of one answer cost by themselves.
"""

import argparse
import asyncio
import contextlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import httpx
import numpy as np
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from starlette.middleware import Middleware
from starlette.types import Message, Receive, Scope, Send

from benchmarks.machine import describe_machine
from index_builder.update import build_index
from retrieval.bundle import open_bundle
from retrieval.describer import Describer
from retrieval.localize.localizer import LocalizeOptions, Located
from service.http.app import create_app
from service.observing.metrics import Metrics
from service.observing.observer import Observer
from service.observing.requests import ObservedRequests
from service.observing.tracing import Tracing
from service.serving.localization import LocalizationService
from service.settings import ServerSettings
from tests.places import make_places, pattern

ROUNDS: Final = 300
BARE_CALLS: Final = 5000
JPEG: Final = {"Content-Type": "image/jpeg"}


class Nowhere(SpanExporter):
    """Takes spans and forgets them: what a collector costs is another machine's."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Forget."""
        return SpanExportResult.SUCCESS


def main() -> None:
    """Print p50 of each, and what the middleware costs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    print(f"cost of observing, {rounds} rounds of one call each; {describe_machine()}")
    with tempfile.TemporaryDirectory() as folder:
        places = make_places(Path(folder), 200)
        build_index(places, Describer(open_bundle()), Path(folder) / "indexes", "places")
        pattern(3, (1024, 768)).save(Path(folder) / "photo.jpg", quality=90)
        photo = (Path(folder) / "photo.jpg").read_bytes()
        asyncio.run(_measure(Path(folder) / "indexes", photo, rounds))


async def _measure(indexes: Path, photo: bytes, rounds: int) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    observers = {
        "bare": Observer(),
        "metrics": Observer(Metrics()),
        "metrics and traces": Observer(Metrics(), Tracing(provider)),
    }
    spent: dict[str, list[float]] = {name: [] for name in observers}
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for name, observer in observers.items():
            localization = _live(stack, indexes, observer)
            app = create_app(localization)
            if name == "bare":
                app.user_middleware[:] = [each for each in app.user_middleware if not _is_ours(each)]
            transport = httpx.ASGITransport(app)
            clients[name] = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://x"))
        for turn in range(rounds + 5):
            # Who goes first changes: what went before leaves the caches warm, or not.
            names = list(clients)
            for name in names[turn % 3 :] + names[: turn % 3]:
                client = clients[name]
                started = time.perf_counter()
                response = await client.post("/localize", content=photo, headers=JPEG)
                took = time.perf_counter() - started
                response.raise_for_status()
                if turn >= 5:
                    spent[name].append(took)
        located = await localization.localize(photo, LocalizeOptions(), "", localization.urgency())
    bare = np.array(spent["bare"])
    for name, seconds in spent.items():
        times = np.array(seconds)
        difference = np.median(times - bare)
        print(
            f"  {name}: p50 {np.median(times) * 1e3:.2f} ms, p95 {np.percentile(times, 95) * 1e3:.2f}; median "
            f"difference to bare in the same round {difference * 1e3:+.3f} ms ({difference / np.median(bare):+.1%})"
        )
    for name, observer in list(observers.items())[1:]:
        print(f"  {name}, without a photo: {await _alone(observer, located) * 1e6:.0f} µs a request")


def _live(stack: contextlib.AsyncExitStack, indexes: Path, observer: Observer) -> LocalizationService:
    localization = LocalizationService(ServerSettings(indexes=indexes, threads=1), observer)
    localization.start()
    localization.live.wait_until_loaded(60.0)
    stack.callback(localization.stop)
    return localization


def _is_ours(middleware: Middleware) -> bool:
    return middleware.cls is ObservedRequests


async def _alone(observer: Observer, located: Located) -> float:
    """Seconds of a result's counting and of the middleware, less those of the app itself."""
    scope: Scope = {"type": "http", "method": "POST", "path": "/localize", "headers": [], "scheme": "http"}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        with observer.photo():
            pass
        observer.answered(located, time.perf_counter())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(_: Message) -> None:
        pass

    watched = ObservedRequests(app, observer)
    started = time.perf_counter()
    for _ in range(BARE_CALLS):
        await watched(dict(scope), receive, send)
    return (time.perf_counter() - started) / BARE_CALLS


if __name__ == "__main__":
    main()
