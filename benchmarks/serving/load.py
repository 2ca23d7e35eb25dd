"""A load generator that costs next to nothing: raw HTTP/1.1 over kept-alive loopback connections."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

BOUNDARY = "sightfix-benchmark"


@dataclass
class Load:
    """What came back.

    Attributes:
        seconds: of the whole run.
        latencies: (status, seconds) of every answer, in order of arrival.
    """

    seconds: float = 0.0
    latencies: list[tuple[int, float]] = field(default_factory=list)

    def of(self, status: int) -> list[float]:
        """Latencies of one status."""
        return [seconds for found, seconds in self.latencies if found == status]

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.of(200)) / self.seconds


def raw_request(path: str, photo: bytes, headers: str = "") -> bytes:
    """A photo as the body."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n{headers}Content-Length: {len(photo)}\r\n\r\n"
    )
    return head.encode() + photo


def multipart_request(path: str, photo: bytes, name: str) -> bytes:
    """A photo as a file of a form, for servers that take nothing else."""
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="p.jpg"\r\n\r\n'.encode()
    body = part + photo + f"\r\n--{BOUNDARY}--\r\n".encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection:
    """One kept-alive connection."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        """Send a request, read the whole answer, return its status."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        if b"connection: close" in head:
            self.close()
        return int(head.split(b" ", 2)[1])

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def closed_loop(host: str, port: int, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Each client asks again as soon as it has its answer."""
    load = Load()
    begun = time.perf_counter()

    async def client(number: int) -> None:
        connection = Connection(host, port)
        turn = number
        while time.perf_counter() - begun < seconds:
            asked = time.perf_counter()
            status = await connection.ask(requests[turn % len(requests)])
            load.latencies.append((status, time.perf_counter() - asked))
            turn += clients
        connection.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    load.seconds = time.perf_counter() - begun
    return load


async def constant_rate(host: str, port: int, requests: Sequence[bytes], rate: float, seconds: float) -> Load:
    """Requests arrive `rate` times a second, whether or not earlier ones are answered."""
    load = Load()
    begun = time.perf_counter()
    idle: list[Connection] = []
    asking: set[asyncio.Task[None]] = set()

    async def one(request: bytes) -> None:
        connection = idle.pop() if idle else Connection(host, port)
        asked = time.perf_counter()
        try:
            status = await connection.ask(request)
        except (OSError, asyncio.IncompleteReadError):
            # A server may hang up an idle connection at the moment it is used again; a new one must work.
            connection.close()
            status = await connection.ask(request)
        load.latencies.append((status, time.perf_counter() - asked))
        idle.append(connection)

    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
        task = asyncio.create_task(one(requests[number % len(requests)]))
        asking.add(task)
        task.add_done_callback(asking.discard)
    await asyncio.gather(*asking)
    load.seconds = time.perf_counter() - begun
    for connection in idle:
        connection.close()
    return load
