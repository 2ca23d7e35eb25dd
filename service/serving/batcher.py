"""The micro-batcher: one thread owns the model; while it works, whatever arrives becomes the next batch.

There is no timer: an idle model takes a single image at once, and a busy one finds a batch when it is done. The shape
is that of text-embeddings-inference's queue; shedding by predicted wait is BentoML's.
"""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from service.problems import RequestError
from service.serving.admission import Lane, Waiter, Waiting

_log = logging.getLogger("sightfix.service")

Item = TypeVar("Item")

Result = TypeVar("Result")

FlushReason = Literal["idle", "full", "busy", "delay"]


@dataclass(frozen=True, slots=True)
class FinishedBatch:
    """One batch, for metrics.

    Attributes:
        size: images in it.
        seconds: how long the model took.
        reason: why it was not larger: the model was `idle`, it was `full`, the model had been `busy` meanwhile, or
            the `delay` was over.
        queue_seconds: how long each image waited in its lane.
        dropped: images that were not run because their deadline had passed or their client had left.
    """

    size: int
    seconds: float
    reason: FlushReason
    queue_seconds: tuple[float, ...]
    dropped: int


@dataclass(eq=False, slots=True)
class _Job(Generic[Item, Result]):
    item: Item
    future: "asyncio.Future[tuple[Result, float]]"
    loop: asyncio.AbstractEventLoop


@dataclass(eq=False, slots=True)
class Ticket(Generic[Item, Result]):
    """The right to be answered: an image that was let in. See `MicroBatcher.admitted`."""

    _batcher: "MicroBatcher[Item, Result]"
    _waiter: Waiter[_Job[Item, Result]]
    _queued: bool = False

    @property
    def deadline(self) -> float:
        """On the batcher's clock, seconds."""
        return self._waiter.deadline

    async def run(self, item: Item) -> tuple[Result, float]:
        """Wait for the model.

        Args:
            item: the decoded image.

        Returns:
            the result, and how many seconds the image waited for the model.

        Raises:
            Exception: whatever running the batch raised.
        """
        self._queued = True
        return await self._batcher._run_one(self._waiter, item)


@dataclass
class MicroBatcher(Generic[Item, Result]):
    """Runs items in batches on one thread.

    Args:
        run: takes a batch, returns as many results in order; always called on the owner thread.
        max_batch: how many items `run` takes at once.
        limit: how many items may be inside, decoding included.
        max_delay_s: how long an idle model waits for company of the first item; 0 by default: not at all.
        on_batch: told of every batch, on the owner thread, before its images are answered.
    """

    run: Callable[[Sequence[Item]], Sequence[Result]]
    max_batch: int = 32
    limit: int = 64
    max_delay_s: float = 0.0
    on_batch: Callable[[FinishedBatch], None] = lambda _: None
    waiting: Waiting[_Job[Item, Result]] = field(init=False)

    def __post_init__(self) -> None:
        self.waiting = Waiting(self.limit, self.max_batch)
        self._changed = threading.Condition()
        self._errands: list[Callable[[], None]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._own, name="localize", daemon=True)

    def take_at_most(self, count: int) -> None:
        """Run at most so many items at once from the next batch on."""
        with self._changed:
            self.max_batch = self.waiting.max_batch = count

    def start(self) -> None:
        """Begin to take batches."""
        self._thread.start()

    @asynccontextmanager
    async def admitted(self, lane: Lane, deadline: float) -> AsyncIterator[Ticket[Item, Result]]:
        """Be let in, or refused at the door; inside the block the image is decoded and run.

        Args:
            lane: robot goes before bulk.
            deadline: `time.monotonic` seconds.

        Raises:
            RefusedError: too many are waiting, or the answer would come too late.
            RequestError: the server stops (``draining``), or the deadline passes inside the block
                (``deadline_exceeded``).
        """
        with self._changed:
            if self._stopping:
                raise _draining()
            waiter = self.waiting.admit(lane, deadline)
        ticket = Ticket(self, waiter)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + deadline - time.monotonic()):
                yield ticket
        except TimeoutError:
            self._note_stay(waiter)
            raise _too_late() from None
        else:
            self._note_stay(waiter)
        finally:
            if not ticket._queued:
                with self._changed:
                    self.waiting.abandon(waiter)

    def check_room(self, lane: Lane, deadline: float) -> None:
        """Refuse what `admitted` would refuse now, without letting anybody in.

        Raises:
            RefusedError, RequestError: as `admitted`.
        """
        with self._changed:
            if self._stopping:
                raise _draining()
            self.waiting.abandon(self.waiting.admit(lane, deadline))

    def on_owner_thread(self, errand: Callable[[], None]) -> None:
        """Run something on the owner thread between two batches, such as a swap of the index."""
        with self._changed:
            self._errands.append(errand)
            self._changed.notify()

    def stop(self, timeout_s: float = 30.0) -> None:
        """Let nobody in any more, answer who is inside, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            _log.error("the model has not come to rest within %.0f s", timeout_s)

    async def _run_one(self, waiter: Waiter[_Job[Item, Result]], item: Item) -> tuple[Result, float]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Result, float]] = loop.create_future()
        with self._changed:
            self.waiting.enqueue(waiter, _Job(item, future, loop))
            self._changed.notify()
        try:
            return await future
        finally:
            waiter.gone = True

    def _note_stay(self, waiter: Waiter[_Job[Item, Result]]) -> None:
        with self._changed:
            self.waiting.answered(waiter)

    def _own(self) -> None:
        """The owner thread."""
        while True:
            idle = self._wait_for_work()
            with self._changed:
                errands, self._errands = self._errands, []
                reason = self._gather(idle)
                batch, dropped = self.waiting.take()
                finished = self._stopping and not batch and not errands and self.waiting.inside == 0
            for errand in errands:
                self._do(errand)
            for waiter in dropped:
                _resolve(waiter, _too_late())
            if batch:
                self._run_batch(batch, reason, len(dropped))
            if finished:
                return

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; whether the model was idle before."""
        with self._changed:
            idle = False
            while not (self.waiting.queued or self._errands or self._stopping):
                idle = True
                self._changed.wait()
            # While stopping, images that are being decoded still arrive.
            while self._stopping and not (self.waiting.queued or self._errands) and self.waiting.inside:
                self._changed.wait(0.05)
            return idle

    def _gather(self, idle: bool) -> FlushReason:
        """Give company a chance to arrive, if the operator wants that; the lock is held."""
        first = self.waiting.oldest()
        if first is not None and self.max_delay_s > 0.0:
            until = first + self.max_delay_s
            while self.waiting.queued < self.max_batch and not self._stopping:
                left = until - self.waiting.clock()
                if left <= 0:
                    return "delay"
                self._changed.wait(left)
        if self.waiting.queued >= self.max_batch:
            return "full"
        return "idle" if idle else "busy"

    def _run_batch(self, batch: list[Waiter[_Job[Item, Result]]], reason: FlushReason, dropped: int) -> None:
        begun = self.waiting.clock()
        outcome: Sequence[Result] | BaseException
        try:
            jobs = [waiter.item for waiter in batch if waiter.item is not None]
            outcome = self.run([job.item for job in jobs])
            if len(outcome) != len(batch):
                raise RuntimeError(f"{len(batch)} items were run, {len(outcome)} results came back")
        except Exception as error:  # whatever it is, only this batch fails
            _log.exception("a batch of %d failed", len(batch))
            outcome = error
        seconds = self.waiting.clock() - begun
        with self._changed:
            self.waiting.finish(seconds)
        waited = tuple(begun - waiter.queued_at for waiter in batch)
        # Told before it is answered: whoever has an answer finds it counted.
        self._do(lambda: self.on_batch(FinishedBatch(len(batch), seconds, reason, waited, dropped)))
        for place, waiter in enumerate(batch):
            _resolve(waiter, outcome if isinstance(outcome, BaseException) else (outcome[place], waited[place]))

    @staticmethod
    def _do(errand: Callable[[], None]) -> None:
        try:
            errand()
        except Exception:
            _log.exception("an errand on the owner thread failed")


def _resolve(waiter: Waiter[_Job[Item, Result]], outcome: "tuple[Result, float] | BaseException") -> None:
    """Hand an outcome to the event loop that waits for it, if it still does."""
    job = waiter.item
    assert job is not None, "only queued images are taken"

    def settle() -> None:
        if job.future.done():
            return
        if isinstance(outcome, BaseException):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)

    try:
        job.loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop is closed: nobody waits
        _log.debug("an answer came after its event loop was closed")


def _too_late() -> RequestError:
    return RequestError(
        "the deadline passed before the photo could be answered",
        code="deadline_exceeded",
        remedy="Allow more time, or send fewer photos at once",
    )


def _draining() -> RequestError:
    return RequestError("the server is shutting down", code="draining", remedy="Ask another server, or try again")
