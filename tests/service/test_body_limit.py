"""Bodies are counted one by one and all together, and nothing stays counted."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.http.limits import BodyLimit
from service.problems import RequestError

SCOPE: Scope = {"type": "http", "headers": []}


async def sent(_: Message) -> None:
    return


class Upload:
    """A request whose body comes piece by piece, when the test wants it to."""

    def __init__(self, limit: BodyLimit) -> None:
        self._pieces: asyncio.Queue[Message] = asyncio.Queue()
        self.task = asyncio.ensure_future(limit(SCOPE, self._pieces.get, sent))

    async def send(self, size: int, *, more: bool = True) -> None:
        self._pieces.put_nowait({"type": "http.request", "body": b"x" * size, "more_body": more})
        for _ in range(20):
            await asyncio.sleep(0)


async def reads_all(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(0.05)


async def refused(upload: Upload) -> str:
    with pytest.raises(RequestError) as caught:
        await upload.task
    return caught.value.code


def test_many_large_bodies_at_once_are_refused_and_room_comes_back() -> None:
    async def scenario() -> None:
        limit = BodyLimit(reads_all, max_bytes=100, max_held_bytes=150)
        first, second = Upload(limit), Upload(limit)
        await first.send(90)
        await second.send(60)
        assert not second.task.done(), "150 in all"
        third = Upload(limit)
        await third.send(1)
        assert await refused(third) == "queue_full"
        await second.send(10, more=False)
        assert await refused(second) == "queue_full"
        await first.send(10, more=False)
        await first.task
        again = Upload(limit)
        await again.send(100, more=False)
        await again.task

    asyncio.run(scenario())


def test_a_body_alone_is_never_too_much() -> None:
    async def scenario() -> None:
        limit = BodyLimit(reads_all, max_bytes=100, max_held_bytes=10)
        alone = Upload(limit)
        await alone.send(100, more=False)
        await alone.task

    asyncio.run(scenario())


def test_one_that_leaves_or_is_too_large_stays_counted_no_longer() -> None:
    async def scenario() -> None:
        limit = BodyLimit(reads_all, max_bytes=100, max_held_bytes=150)
        leaving, large = Upload(limit), Upload(limit)
        await leaving.send(50)
        leaving.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving.task
        await large.send(101)
        assert await refused(large) == "body_too_large"
        first, second = Upload(limit), Upload(limit)
        await first.send(75, more=False)
        await second.send(75, more=False)
        await asyncio.gather(first.task, second.task)

    asyncio.run(scenario())
