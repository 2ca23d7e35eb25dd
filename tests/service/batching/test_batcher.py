"""The batcher with a model whose throttle the tests hold in hand."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

import pytest

from service.problems import RequestError
from service.serving.admission import Lane, RejectedError, Urgency
from service.serving.batcher import FinishedBatch, MicroBatcher


class Model:
    """Doubles numbers; a closed gate holds it in the middle of a batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        self.threads.add(threading.get_ident())
        self.entered.release()
        assert self.gate.wait(10)
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


@pytest.fixture
def model() -> Model:
    return Model()


@pytest.fixture
def batcher(model: Model) -> Iterator[MicroBatcher[int, int]]:
    finished: list[FinishedBatch] = []
    made: MicroBatcher[int, int] = MicroBatcher(model, max_batch=4, limit=8, on_batch=finished.append)
    made.finished = finished  # type: ignore[attr-defined]
    made.start()
    yield made
    model.gate.set()
    made.stop(5)


async def ask(batcher: MicroBatcher[int, int], item: int, lane: Lane = "robot", seconds: float = 5.0) -> int:
    async with batcher.admitted(Urgency(lane, time.monotonic() + seconds)) as ticket:
        result, waited = await ticket.run(item)
        assert 0 <= waited < 10
        return result


def run(coroutine: Awaitable[object]) -> object:
    async def bounded() -> object:
        return await asyncio.wait_for(coroutine, 10)

    return asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("waited in vain")


def test_a_single_item_leaves_at_once(batcher: MicroBatcher[int, int], model: Model) -> None:
    assert run(ask(batcher, 21)) == 42
    assert model.batches == [[21]]
    assert batcher.finished[0].reason == "idle"  # type: ignore[attr-defined]


def test_while_the_model_is_busy_the_next_batch_grows(batcher: MicroBatcher[int, int], model: Model) -> None:
    async def scenario() -> list[int]:
        model.gate.clear()
        first = asyncio.create_task(ask(batcher, 0))
        await until(lambda: model.batches == [[0]])
        others = [asyncio.create_task(ask(batcher, item, "bulk" if item < 3 else "robot")) for item in range(1, 7)]
        await until(lambda: batcher.queue.queued == 6)
        model.gate.set()
        return await asyncio.gather(first, *others)

    assert run(scenario()) == [0, 2, 4, 6, 8, 10, 12]
    assert model.batches == [[0], [3, 4, 5, 6], [1, 2]]
    assert [batch.reason for batch in batcher.finished] == ["idle", "full", "busy"]  # type: ignore[attr-defined]
    assert len(model.threads) == 1
    assert batcher.queue.admitted == 0


def test_one_failing_batch_fails_alone(batcher: MicroBatcher[int, int], model: Model) -> None:
    async def scenario() -> None:
        with pytest.raises(ValueError, match="thirteen"):
            await ask(batcher, 13)
        assert await ask(batcher, 5) == 10

    run(scenario())
    assert batcher.queue.admitted == 0


def test_a_full_house_refuses_and_recovers(batcher: MicroBatcher[int, int], model: Model) -> None:
    async def scenario() -> None:
        model.gate.clear()
        tasks = [asyncio.create_task(ask(batcher, item)) for item in range(8)]
        await until(lambda: batcher.queue.admitted == 8 and len(model.batches) == 1)
        with pytest.raises(RejectedError, match="8 photos are waiting"):
            await ask(batcher, 99)
        model.gate.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10, 12, 14]
        assert await ask(batcher, 99) == 198

    run(scenario())


def test_whoever_has_an_answer_finds_its_batch_counted(model: Model) -> None:
    finished: list[FinishedBatch] = []

    def slowly(batch: FinishedBatch) -> None:
        time.sleep(0.05)
        finished.append(batch)

    batcher: MicroBatcher[int, int] = MicroBatcher(model, max_batch=4, limit=8, on_batch=slowly)
    batcher.start()
    assert run(ask(batcher, 21)) == 42
    assert [batch.size for batch in finished] == [1]
    batcher.stop(5)


def test_a_photo_that_cannot_be_decoded_gives_its_place_back(batcher: MicroBatcher[int, int]) -> None:
    async def scenario() -> None:
        with pytest.raises(OSError, match="damaged"):
            async with batcher.admitted(Urgency("robot", time.monotonic() + 5)):
                raise OSError("damaged")

    run(scenario())
    assert batcher.queue.admitted == 0


def test_whoever_left_is_not_run(batcher: MicroBatcher[int, int], model: Model) -> None:
    async def scenario() -> None:
        model.gate.clear()
        first = asyncio.create_task(ask(batcher, 1))
        await until(lambda: len(model.batches) == 1)
        leaving, staying = asyncio.create_task(ask(batcher, 2)), asyncio.create_task(ask(batcher, 3))
        await until(lambda: batcher.queue.queued == 2)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        model.gate.set()
        assert await asyncio.gather(first, staying) == [2, 6]

    run(scenario())
    assert model.batches == [[1], [3]]
    assert batcher.finished[1].dropped == 1  # type: ignore[attr-defined]


def test_a_deadline_that_passes_in_the_lane(batcher: MicroBatcher[int, int], model: Model) -> None:
    async def scenario() -> None:
        assert await ask(batcher, 1) == 2  # the batcher learns that a batch takes next to nothing
        model.gate.clear()
        first = asyncio.create_task(ask(batcher, 1))
        await until(lambda: len(model.batches) == 2)
        begun = time.monotonic()
        with pytest.raises(RequestError, match="deadline passed") as caught:
            await ask(batcher, 2, seconds=0.2)
        assert caught.value.code == "deadline_exceeded"
        assert time.monotonic() - begun < 2
        model.gate.set()
        assert await first == 2
        assert await ask(batcher, 4) == 8

    run(scenario())
    assert [2] not in model.batches


def test_an_errand_runs_on_the_owner_thread_between_batches(batcher: MicroBatcher[int, int], model: Model) -> None:
    ran: list[int] = []

    async def scenario() -> None:
        await ask(batcher, 1)
        model.gate.clear()
        task = asyncio.create_task(ask(batcher, 2))
        await until(lambda: len(model.batches) == 2)
        batcher.on_owner_thread(lambda: ran.append(threading.get_ident()))
        batcher.on_owner_thread(lambda: 1 // 0)  # type: ignore[arg-type]
        await asyncio.sleep(0.02)
        assert not ran
        model.gate.set()
        await task
        await until(lambda: bool(ran))
        assert await ask(batcher, 3) == 6

    run(scenario())
    assert set(ran) == model.threads


def test_stopping_answers_whoever_is_inside_and_lets_nobody_in(batcher: MicroBatcher[int, int], model: Model) -> None:
    async def scenario() -> None:
        model.gate.clear()
        running = [asyncio.create_task(ask(batcher, item)) for item in range(3)]
        await until(lambda: len(model.batches) >= 1 and batcher.queue.admitted == 3)
        decoding = asyncio.Event()

        async def slow() -> int:
            async with batcher.admitted(Urgency("robot", time.monotonic() + 5)) as ticket:
                await decoding.wait()
                return (await ticket.run(50))[0]

        late = asyncio.create_task(slow())
        await until(lambda: batcher.queue.admitted == 4)
        stopping = asyncio.create_task(asyncio.to_thread(batcher.stop, 5))
        await until(lambda: batcher._stopping)
        with pytest.raises(RequestError, match="shutting down"):
            await ask(batcher, 7)
        model.gate.set()
        assert await asyncio.gather(*running) == [0, 2, 4]
        decoding.set()
        assert await late == 100
        await stopping
        assert not batcher._thread.is_alive()

    run(scenario())


def test_with_a_delay_an_idle_model_waits_for_company(model: Model) -> None:
    batcher: MicroBatcher[int, int] = MicroBatcher(model, max_batch=2, limit=8, max_delay_s=5.0)
    batcher.start()

    async def scenario() -> list[int]:
        first = asyncio.create_task(ask(batcher, 1))
        await until(lambda: batcher.queue.queued == 1)
        await asyncio.sleep(0.05)
        assert model.batches == []
        return [await ask(batcher, 2), await first]

    begun = time.monotonic()
    assert run(scenario()) == [4, 2]
    assert time.monotonic() - begun < 4, "a full batch does not wait for the timer"
    assert model.batches == [[1, 2]]
    batcher.stop(5)


def test_a_batch_is_as_large_as_was_said_last(model: Model) -> None:
    batcher: MicroBatcher[int, int] = MicroBatcher(model, max_batch=4, limit=8, max_delay_s=5.0)
    batcher.limit_batch(2)
    batcher.start()

    async def scenario() -> None:
        await asyncio.gather(*(ask(batcher, number) for number in range(4)))

    run(scenario())
    assert [len(batch) for batch in model.batches] == [2, 2]
    batcher.stop(5)
