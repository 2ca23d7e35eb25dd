"""Who is let in, who waits in which lane, and how long that will take."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from service.batching.duration import BatchDuration
from service.batching.stay import Stay
from service.problems import RequestError

Lane = Literal["robot", "bulk"]
LANES: tuple[Lane, ...] = ("robot", "bulk")

Item = TypeVar("Item")


class RefusedError(RequestError):
    """Not let in, because it could not be answered in time; the server is healthy.

    Args:
        what: what is wrong.
        retry_after_s: when it is worth trying again, seconds.
        reason: the `queue` is full, or the `deadline` too near.
    """

    def __init__(self, what: str, retry_after_s: float, *, reason: Literal["queue", "deadline"]) -> None:
        super().__init__(
            what,
            code="queue_full",
            remedy=f"Try again in {math.ceil(retry_after_s)} s",
            retry_after_s=retry_after_s,
        )
        self.reason = reason


@dataclass(eq=False, slots=True)
class Waiter(Generic[Item]):
    """One image that was let in.

    Attributes:
        lane: who goes first.
        deadline: on `clock`, seconds; after it nobody wants the answer.
        admitted_at: on the same clock.
        ahead: how many were to be answered before it, when it was let in.
        item: what to run, once it is decoded.
        queued_at: when it was.
        gone: whether whoever asked has left.
    """

    lane: Lane
    deadline: float
    admitted_at: float
    ahead: int
    item: Item | None = None
    queued_at: float = 0.0
    gone: bool = False


@dataclass
class Waiting(Generic[Item]):
    """The one place where images are counted: those being decoded, those in the lanes, those in the model.

    Not thread-safe: `MicroBatcher` holds its lock around every call.

    Attributes:
        limit: how many images may be inside; the bulk lane stops at half of it, so that a robot finds room.
        max_batch: how many the model takes at once.
        duration: predicts a batch's seconds.
        stay: predicts an image's, from the door to the answer.
        clock: monotonic seconds.
    """

    limit: int
    max_batch: int
    duration: BatchDuration = field(default_factory=BatchDuration)
    stay: Stay = field(default_factory=Stay)
    clock: Callable[[], float] = time.monotonic
    _lanes: dict[Lane, deque[Waiter[Item]]] = field(default_factory=lambda: {lane: deque() for lane in LANES})
    _decoding: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))
    _running: int = 0
    _running_since: float = 0.0

    @property
    def inside(self) -> int:
        """Images that were let in and are not answered yet."""
        return sum(self._decoding.values()) + self.queued + self._running

    @property
    def queued(self) -> int:
        """Images that are decoded and wait for the model."""
        return sum(map(len, self._lanes.values()))

    def depth(self, lane: Lane) -> int:
        """Images of a lane that wait, decoded or not."""
        return self._decoding[lane] + len(self._lanes[lane])

    def admit(self, lane: Lane, deadline: float) -> Waiter[Item]:
        """Let one image in.

        Args:
            lane: robot goes before bulk.
            deadline: on the clock, seconds.

        Raises:
            RefusedError: the limit is reached, or it would be answered too late.
        """
        now = self.clock()
        wait = self.predicted_wait_s(lane)
        full = self.limit if lane == "robot" else max(1, self.limit // 2)
        if self.inside >= full:
            raise RefusedError(f"{self.inside} photos are waiting already", max(wait, 0.1), reason="queue")
        if now + wait > deadline:
            raise RefusedError(
                f"the answer would take {wait:.2f} s, and the deadline is in {max(deadline - now, 0.0):.2f} s",
                max(wait - (deadline - now), 0.1),
                reason="deadline",
            )
        waiter: Waiter[Item] = Waiter(lane, deadline, now, self._ahead(lane))
        self._decoding[lane] += 1
        return waiter

    def _ahead(self, lane: Lane) -> int:
        """How many are answered before an image that is let in now: whoever is being decoded has a place already."""
        before = LANES[: LANES.index(lane) + 1]
        return sum(self._decoding.values()) + sum(len(self._lanes[other]) for other in before) + self._running

    def predicted_wait_s(self, lane: Lane) -> float:
        """Seconds until an image that is let in now would be answered.

        By what the model needs for those ahead, and by how long images with as many ahead have stayed; the longer of
        both. An empty house always tries, or a single stall would keep everybody out for ever.
        """
        if self.inside == 0:
            return self.stay.shortest_s
        before = LANES[: LANES.index(lane) + 1]
        waiting = sum(self.depth(other) for other in before)
        whole, rest = divmod(waiting + 1, self.max_batch)
        to_come = whole * self.duration.predict(self.max_batch) + self.duration.predict(rest)
        under_way = 0.0
        if self._running:
            under_way = self.duration.predict(self._running) - (self.clock() - self._running_since)
        return max(to_come + max(under_way, 0.0), self.stay.predict(self._ahead(lane)))

    def enqueue(self, waiter: Waiter[Item], item: Item) -> None:
        """Put a decoded image into its lane."""
        self._decoding[waiter.lane] -= 1
        waiter.item = item
        waiter.queued_at = self.clock()
        self._lanes[waiter.lane].append(waiter)

    def abandon(self, waiter: Waiter[Item]) -> None:
        """An image that was let in never reaches the lanes: it cannot be decoded, or its client left."""
        self._decoding[waiter.lane] -= 1

    def take(self) -> tuple[list[Waiter[Item]], list[Waiter[Item]]]:
        """Take the next batch out of the lanes, and begin it.

        Returns:
            the batch, robots first, each lane in order; and those dropped on the way because their deadline has passed
            or whoever asked has left.
        """
        now = self.clock()
        batch: list[Waiter[Item]] = []
        dropped: list[Waiter[Item]] = []
        for lane in LANES:
            queue = self._lanes[lane]
            while queue and len(batch) < self.max_batch:
                waiter = queue.popleft()
                (dropped if waiter.gone or waiter.deadline <= now else batch).append(waiter)
        self._running, self._running_since = len(batch), now
        return batch, dropped

    def finish(self, seconds: float) -> None:
        """The batch that was taken last is done."""
        if self._running:
            self.duration.observe(self._running, seconds)
        self._running = 0

    def answered(self, waiter: Waiter[Item]) -> None:
        """An image has its answer, or its deadline has passed."""
        now = self.clock()
        self.stay.observe(waiter.ahead, now - waiter.admitted_at, too_late=now >= waiter.deadline)

    def oldest(self) -> float | None:
        """When the first of those that wait was queued, on the clock; None when nobody waits."""
        return min((queue[0].queued_at for queue in self._lanes.values() if queue), default=None)

    def drain(self) -> list[Waiter[Item]]:
        """Take everybody out of the lanes."""
        left = [waiter for lane in LANES for waiter in self._lanes[lane]]
        for queue in self._lanes.values():
            queue.clear()
        return left
