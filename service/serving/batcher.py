"""The micro-batcher: one thread owns the model; what arrives while it works becomes the next batch.

There is no timer: an idle model takes a single photo at once, and a busy one finds a batch when it is done. The design
is that of text-embeddings-inference's queue; rejecting by predicted wait is BentoML's.
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
from service.serving.admission import AdmissionQueue, AdmittedPhoto, Urgency

_log = logging.getLogger("sightfix.service")
Item = TypeVar("Item")
Result = TypeVar("Result")
FlushReason = Literal["idle", "full", "busy", "delay"]


@dataclass(frozen=True, slots=True)
class FinishedBatch:
    """One batch, for metrics.

    Attributes:
        size: photos in it.
        seconds: how long the model took.
        reason: why it was not larger: the model was `idle`, it was `full`, the model had been `busy` meanwhile, or
            the `delay` was over.
        queue_seconds: how long each photo waited in its lane.
        dropped: photos that were not run because their deadline had passed or their client had left.
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
    """An admitted photo's right to be run once. See `MicroBatcher.admitted`."""

    _enqueue: "Callable[[AdmittedPhoto[_Job[Item, Result]], Item], asyncio.Future[tuple[Result, float]]]"
    _photo: AdmittedPhoto[_Job[Item, Result]]
    used: bool = False

    async def run(self, item: Item) -> tuple[Result, float]:
        """Wait for the model.

        Args:
            item: the decoded photo.

        Returns:
            the result, and how many seconds the photo waited for the model.

        Raises:
            Exception: whatever running the batch raised.
        """
        self.used = True
        try:
            return await self._enqueue(self._photo, item)
        finally:
            self._photo.abandoned = True


@dataclass
class MicroBatcher(Generic[Item, Result]):
    """Runs items in batches on one thread.

    Args:
        run: takes a batch, returns as many results in order; always called on the owner thread.
        max_batch: how many items `run` takes at once.
        limit: how many items may be admitted at once, decoding included.
        max_delay_s: how long an idle model waits for further items after the first; 0 by default: not at all.
        on_batch: called with every batch, on the owner thread, before its items are answered.
    """

    run: Callable[[Sequence[Item]], Sequence[Result]]
    max_batch: int = 32
    limit: int = 64
    max_delay_s: float = 0.0
    on_batch: Callable[[FinishedBatch], None] = lambda _: None
    queue: AdmissionQueue[_Job[Item, Result]] = field(init=False)

    def __post_init__(self) -> None:
        self.queue = AdmissionQueue(self.limit, self.max_batch)
        self._changed = threading.Condition()
        self._tasks: list[Callable[[], None]] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._own, name="localize", daemon=True)

    def limit_batch(self, count: int) -> None:
        """Run at most so many items at once from the next batch on."""
        with self._changed:
            self.max_batch = self.queue.max_batch = count

    def start(self) -> None:
        """Begin to take batches."""
        self._thread.start()

    @asynccontextmanager
    async def admitted(self, urgency: Urgency) -> AsyncIterator[Ticket[Item, Result]]:
        """Admit a photo, or reject it; inside the block it is decoded and run.

        Raises:
            RejectedError: too many are waiting, or the answer would come too late.
            RequestError: the server stops (``draining``), or the deadline passes inside the block
                (``deadline_exceeded``).
        """
        with self._changed:
            if self._stopping:
                raise _draining()
            photo = self.queue.admit(urgency.lane, urgency.deadline)
        ticket: Ticket[Item, Result] = Ticket(self._enqueue, photo)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(loop.time() + urgency.deadline - time.monotonic()):
                yield ticket
        except TimeoutError:
            self._record_latency(photo)
            raise _too_late() from None
        else:
            self._record_latency(photo)
        finally:
            if not ticket.used:
                with self._changed:
                    self.queue.release(photo)

    def check_room(self, urgency: Urgency) -> None:
        """Reject what `admitted` would reject now, without admitting anything.

        Raises:
            RejectedError, RequestError: as `admitted`.
        """
        with self._changed:
            if self._stopping:
                raise _draining()
            self.queue.release(self.queue.admit(urgency.lane, urgency.deadline))

    def on_owner_thread(self, task: Callable[[], None]) -> None:
        """Run something on the owner thread between two batches, such as a swap of the index."""
        with self._changed:
            self._tasks.append(task)
            self._changed.notify()

    def stop(self, timeout_s: float = 30.0) -> None:
        """Admit nothing more, answer what was admitted, and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            _log.error("the model is still busy after %.0f s", timeout_s)

    def _enqueue(self, photo: AdmittedPhoto[_Job[Item, Result]], item: Item) -> "asyncio.Future[tuple[Result, float]]":
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Result, float]] = loop.create_future()
        with self._changed:
            self.queue.enqueue(photo, _Job(item, future, loop))
            self._changed.notify()
        return future

    def _record_latency(self, photo: AdmittedPhoto[_Job[Item, Result]]) -> None:
        with self._changed:
            self.queue.answered(photo)

    def _own(self) -> None:
        """The owner thread."""
        while True:
            idle = self._wait_for_work()
            with self._changed:
                tasks, self._tasks = self._tasks, []
                reason = self._gather(idle)
                batch, dropped = self.queue.take()
                finished = self._stopping and not batch and not tasks and self.queue.admitted == 0
            for task in tasks:
                _run_safely(task)
            for photo in dropped:
                _resolve(photo, _too_late())
            if batch:
                self._run_batch(batch, reason, len(dropped))
            if finished:
                return

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; whether the model was idle before."""
        with self._changed:
            idle = False
            while not (self.queue.queued or self._tasks or self._stopping):
                idle = True
                self._changed.wait()
            # While stopping, photos that are being decoded still arrive.
            while self._stopping and not (self.queue.queued or self._tasks) and self.queue.admitted:
                self._changed.wait(0.05)
            return idle

    def _gather(self, idle: bool) -> FlushReason:
        """Wait for further photos, if the operator wants that; the lock is held."""
        first = self.queue.oldest()
        if first is not None and self.max_delay_s > 0.0:
            until = first + self.max_delay_s
            while self.queue.queued < self.max_batch and not self._stopping:
                left = until - self.queue.clock()
                if left <= 0:
                    return "delay"
                self._changed.wait(left)
        if self.queue.queued >= self.max_batch:
            return "full"
        return "idle" if idle else "busy"

    def _run_batch(self, batch: list[AdmittedPhoto[_Job[Item, Result]]], reason: FlushReason, dropped: int) -> None:
        begun = self.queue.clock()
        outcome: Sequence[Result] | BaseException
        try:
            jobs = [photo.item for photo in batch if photo.item is not None]
            outcome = self.run([job.item for job in jobs])
            if len(outcome) != len(batch):
                raise RuntimeError(f"{len(batch)} items were run, {len(outcome)} results came back")
        except Exception as error:  # whatever it is, only this batch fails
            _log.exception("a batch of %d failed", len(batch))
            outcome = error
        seconds = self.queue.clock() - begun
        with self._changed:
            self.queue.finish(seconds)
        waited = tuple(begun - photo.queued_at for photo in batch)
        # Before the answers, so that a client that has its answer finds it counted.
        _run_safely(lambda: self.on_batch(FinishedBatch(len(batch), seconds, reason, waited, dropped)))
        for place, photo in enumerate(batch):
            _resolve(photo, outcome if isinstance(outcome, BaseException) else (outcome[place], waited[place]))


def _run_safely(task: Callable[[], None]) -> None:
    try:
        task()
    except Exception:
        _log.exception("a task on the owner thread failed")


def _resolve(photo: AdmittedPhoto[_Job[Item, Result]], outcome: "tuple[Result, float] | BaseException") -> None:
    """Hand an outcome to the event loop that waits for it, if it still does."""
    job = photo.item
    assert job is not None, "only queued photos are taken"

    def settle() -> None:
        if job.future.done():
            return
        if isinstance(outcome, BaseException):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)

    try:
        job.loop.call_soon_threadsafe(settle)
    except RuntimeError:  # the loop is closed
        _log.debug("an answer came after its event loop was closed")


def _too_late() -> RequestError:
    return RequestError(
        "the deadline passed before the photo could be answered",
        code="deadline_exceeded",
        remedy="Allow more time, or send fewer photos at once",
    )


def _draining() -> RequestError:
    return RequestError("the server is shutting down", code="draining", remedy="Ask another server, or try again")
