"""Clients of all sorts at once: good, bad, slow, leaving, batches, gRPC, and an operator who swaps the index."""

import asyncio
import base64
import contextlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import httpx

from benchmarks.serving.load import raw_request
from service.grpc.generated import localization_pb2 as pb
from service.grpc.generated.localization_pb2_grpc import LocalizationServiceStub
from tests.service.malformed.image_samples import bad, doubtful, whole

# A photo is answered, or refused because the server is busy; nothing else is right for a good client.
GOOD = frozenset({"200", "429"})
REFUSED = frozenset({"400", "413", "415", "422", "429"})
GRPC_GOOD = frozenset({"OK", "RESOURCE_EXHAUSTED"})


@dataclass
class Tally:
    """What came back.

    Attributes:
        answers: how often a client of a kind got a status.
        wrong: what no client of its kind may get, and the first answer of that sort.
        versions: index versions that answered.
    """

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: dict[tuple[str, str], str] = field(default_factory=dict)
    versions: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, status: str, allowed: frozenset[str], detail: str = "") -> None:
        """One client has its answer."""
        self.answers[kind, status] += 1
        if status not in allowed:
            self.wrong.setdefault((kind, status), detail[:500])


class Traffic:
    """Clients of one server, until told to stop.

    Args:
        url: of its HTTP.
        grpc_address: of its gRPC.
        photos: encoded, to be answered.
        pause_s: how long a client thinks between two requests, on average.
        seed: of whatever is left to chance.
    """

    def __init__(self, url: str, grpc_address: str, photos: list[bytes], pause_s: float, seed: int = 1) -> None:
        self.tally = Tally()
        self._url = url
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._grpc_address = grpc_address
        self._photos = photos
        self._pause_s = pause_s
        self._random = random.Random(seed)
        self._stop = asyncio.Event()

    async def run(self, seconds: float) -> None:
        """Let all of them ask for a while."""
        self._stop.clear()
        async with (
            httpx.AsyncClient(base_url=self._url, timeout=60) as client,
            grpc.aio.insecure_channel(self._grpc_address) as channel,
        ):
            stub = LocalizationServiceStub(channel)
            # Each line is one client; good ones are the most.
            clients: list[Callable[[], Awaitable[None]]] = [
                *[lambda: self._good(client)] * 4,
                lambda: self._forms(client),
                lambda: self._bad(client),
                lambda: self._odd(client),
                lambda: self._batch(client),
                lambda: self._halves(client),
                lambda: self._looking(client),
                self._slow,
                self._leaving,
                lambda: self._called(stub),
                lambda: self._streamed(stub),
            ]
            async with asyncio.TaskGroup() as group:
                for one in clients:
                    group.create_task(self._again_and_again(one))
                await asyncio.sleep(seconds)
                self._stop.set()

    async def activate(self, name: str) -> None:
        """Make a version that is not served the current one."""
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as client:
            listing = (await client.get(f"/indexes/{name}")).json()
            others = [one["version"] for one in listing["versions"] if one["version"] != listing["served"]]
            body = {"version": self._random.choice(others)}
            answer = await client.post(f"/indexes/{name}/activate", json=body)
            self.tally.note("activate", str(answer.status_code), frozenset({"200"}), answer.text)

    async def reindex(self, name: str, source: str, limit_s: float = 120.0) -> None:
        """Have all photos of an index described again, and wait until that version is published."""
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as client:
            accepted = await client.post("/jobs", json={"kind": "full", "index": name, "source": source})
            self.tally.note("job", str(accepted.status_code), frozenset({"202"}), accepted.text)
            state, until = "PENDING", time.monotonic() + limit_s
            while state not in ("SUCCEEDED", "FAILED", "CANCELLED") and time.monotonic() < until:
                await asyncio.sleep(0.5)
                state = (await client.get(accepted.headers["location"])).json()["state"]
            self.tally.note("job", state, frozenset({"202", "SUCCEEDED"}))

    async def _again_and_again(self, one: Callable[[], Awaitable[None]]) -> None:
        while not self._stop.is_set():
            try:
                await one()
            except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                # The server hung up an idle connection at the moment it was used again.
                self.tally.answers["any", "connection reused too late"] += 1
            await asyncio.sleep(self._random.expovariate(1.0 / self._pause_s))

    def _photo(self) -> bytes:
        return self._random.choice(self._photos)

    async def _ask(
        self, client: httpx.AsyncClient, kind: str, allowed: frozenset[str], path: str, **more: object
    ) -> None:
        response = await client.post(path, **more)  # type: ignore[arg-type]
        self.tally.note(kind, str(response.status_code), allowed, response.text)
        if kind == "good" and response.status_code == 200:
            self.tally.versions[response.json()["index"]["version"]] += 1

    async def _good(self, client: httpx.AsyncClient) -> None:
        lane = {"X-Lane": "bulk"} if self._random.random() < 0.2 else {}
        await self._ask(
            client, "good", GOOD, "/localize", content=self._photo(), headers={"Content-Type": "image/jpeg", **lane}
        )

    async def _forms(self, client: httpx.AsyncClient) -> None:
        photo = self._random.choice(list(whole().values()))
        form = self._random.randrange(3)
        if form == 0:
            await self._ask(client, "multipart", GOOD, "/localize", files={"image": photo}, data={"top_k": "5"})
        elif form == 1:
            body = {"image": {"content": base64.b64encode(photo).decode()}, "top_k": 3}
            await self._ask(client, "JSON", GOOD, "/localize", json=body)
        else:
            headers = {"Content-Type": "image/png", "Accept": "application/geo+json"}
            await self._ask(client, "GeoJSON", GOOD, "/localize", content=photo, headers=headers)

    async def _bad(self, client: httpx.AsyncClient) -> None:
        photo = self._random.choice(list(bad().values()))
        await self._ask(client, "bad", REFUSED, "/localize", content=photo, headers={"Content-Type": "image/jpeg"})

    async def _odd(self, client: httpx.AsyncClient) -> None:
        photo = self._random.choice(list(doubtful().values()))
        await self._ask(client, "odd", GOOD | REFUSED, "/localize", files={"image": photo})
        broken = self._random.choice([b"{", b"[" * 5000, b'{"image": {"content": "!"}}', b'{"top_k": 1e999}', b"\xff"])
        headers = {"Content-Type": "application/json"}
        await self._ask(client, "odd", REFUSED, "/localize", content=broken, headers=headers)

    async def _batch(self, client: httpx.AsyncClient) -> None:
        photos = [self._photo() for _ in range(self._random.randint(1, 31))] + [b"no photo"]
        files = [("image", photo) for photo in photos]
        await self._ask(client, "batch", GOOD, "/localize/batch", files=files)

    async def _halves(self, client: httpx.AsyncClient) -> None:
        described = await client.post("/describe", content=self._photo(), headers={"Content-Type": "image/jpeg"})
        self.tally.note("describe", str(described.status_code), GOOD, described.text)
        if described.status_code == 200:
            await self._ask(client, "search", GOOD, "/search", json={"descriptor": described.json()["descriptor"]})

    async def _looking(self, client: httpx.AsyncClient) -> None:
        for path in ("/info", "/readyz", "/indexes", "/references/photos%2F0003.jpg/image", "/openapi.json"):
            response = await client.get(path)
            self.tally.note("looking", str(response.status_code), frozenset({"200"}), response.text)
        missing = await client.get("/nowhere")
        self.tally.note("looking for nothing", str(missing.status_code), frozenset({"404"}), missing.text)

    async def _slow(self) -> None:
        """Sends a photo in drops; every third client gives up on the way."""
        photo = self._photo()
        gives_up = self._random.random() < 0.33
        async with self._connection() as (reader, writer):
            writer.write(self._head(len(photo)))
            pieces = 20
            for number in range(pieces):
                if gives_up and number == pieces // 2:
                    self.tally.note("slow", "gave up", frozenset({"gave up"}))
                    return
                writer.write(photo[len(photo) * number // pieces : len(photo) * (number + 1) // pieces])
                await writer.drain()
                await asyncio.sleep(0.1)
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            self.tally.note("slow", head.split(b" ", 2)[1].decode(), GOOD)

    async def _leaving(self) -> None:
        """Sends all and hangs up before the answer."""
        photo = self._photo()
        async with self._connection() as (_, writer):
            writer.write(self._head(len(photo)) + photo)
            await writer.drain()
            await asyncio.sleep(self._random.uniform(0.0, 0.03))
        self.tally.note("leaving", "left", frozenset({"left"}))

    async def _called(self, stub: LocalizationServiceStub) -> None:
        turn = self._random.random()
        photo = self._random.choice(list(bad().values())) if turn < 0.2 else self._photo()
        allowed = frozenset({"INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"}) if turn < 0.2 else GRPC_GOOD
        call = stub.Localize(pb.LocalizeRequest(image=photo), timeout=60)
        if turn > 0.8:
            await asyncio.sleep(self._random.uniform(0.0, 0.03))
            call.cancel()
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
                await call
            self.tally.note("gRPC, leaving", "left", frozenset({"left"}))
            return
        try:
            await call
            self.tally.note("gRPC", "OK", allowed)
        except grpc.aio.AioRpcError as error:
            self.tally.note("gRPC", error.code().name, allowed, error.details() or "")

    async def _streamed(self, stub: LocalizationServiceStub) -> None:
        stream = stub.LocalizeStream(timeout=60)
        frames = self._random.randint(1, 8)
        try:
            for number in range(frames):
                await stream.write(pb.LocalizeStreamRequest(frame=pb.Frame(frame_id=number + 1, image=self._photo())))
            if self._random.random() < 0.3:
                stream.cancel()
                self.tally.note("gRPC stream, leaving", "left", frozenset({"left"}))
                return
            await stream.done_writing()
            answered = 0
            while await stream.read() is not grpc.aio.EOF:
                answered += 1
            self.tally.note("gRPC stream", "OK" if answered == frames else f"{answered} of {frames}", GRPC_GOOD)
        except grpc.aio.AioRpcError as error:
            self.tally.note("gRPC stream", error.code().name, GRPC_GOOD, error.details() or "")

    @contextlib.asynccontextmanager
    async def _connection(self):  # type: ignore[no-untyped-def]
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    @staticmethod
    def _head(length: int) -> bytes:
        return raw_request("/localize", bytes(length))[:-length]


def as_table(tally: Tally) -> str:
    """Kinds of clients and what they got, one line each."""
    kinds = sorted({kind for kind, _ in tally.answers})
    rows = []
    for kind in kinds:
        counts = {status: count for (found, status), count in sorted(tally.answers.items()) if found == kind}
        rows.append(f"  {kind:22} " + ", ".join(f"{status} {count:,}" for status, count in counts.items()))
    return "\n".join(rows)
