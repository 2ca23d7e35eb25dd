"""How long a batch of n takes: a·n + b, fitted to the batches of the last while."""

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeVar

from service.problems import RequestError

# Of the weight of a batch that the next one still has: the last thirty or so count.
_MEMORY: Final = 0.97


class BatchDuration:
    """A straight line through the durations of recent batches, by exponentially weighted least squares.

    Both coefficients are kept from going below 0: more images never take less time.

    Args:
        first_guess_s: seconds for a single image, before anything was measured.
    """

    def __init__(self, first_guess_s: float = 0.05) -> None:
        self._first_guess_s = first_guess_s
        self._weight = self._n = self._nn = self._t = self._nt = 0.0

    def observe(self, count: int, seconds: float) -> None:
        """Take one finished batch into account.

        Args:
            count: images in it, at least 1.
            seconds: how long it took.
        """
        for name, value in (
            ("_weight", 1.0),
            ("_n", count),
            ("_nn", count**2),
            ("_t", seconds),
            ("_nt", count * seconds),
        ):
            setattr(self, name, _MEMORY * getattr(self, name) + value)

    def predict(self, count: int) -> float:
        """Seconds that a batch of `count` images will take; 0 for none."""
        if count < 1:
            return 0.0
        if self._weight == 0.0:
            return self._first_guess_s * count
        slope, intercept = self._line()
        return slope * count + intercept

    def _line(self) -> tuple[float, float]:
        """(a, b): seconds an image, seconds a batch."""
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        spread = self._nn / self._weight - mean_n**2
        # All batches of one size say nothing about the slope: then the whole time is the images'.
        slope = mean_t / mean_n if spread < 1e-9 else (self._nt / self._weight - mean_n * mean_t) / spread
        slope = min(max(slope, 0.0), mean_t / mean_n)
        return slope, max(mean_t - slope * mean_n, 0.0)


# How long an image stays inside, from being let in to its answer, by how many were ahead of it.
#
# The model's own a·n + b leaves out decoding, and that both share the same cores. What really happened knows it all.

# How many stays are remembered: some seconds' worth under load, so that a bad moment is forgotten soon.
_REMEMBERED: Final = 256

# Of so many or more, the longest one does not count: a single odd one is no rule, and a stall holds up many.
_MANY: Final = 32

# An image whose deadline passed would have stayed longer than it did, nobody knows by how much.
_TOO_LATE: Final = 1.25

# Of the line: what is left for what nobody foresees, such as the machine's other work. A longer queue would gain
# nothing, for batches are large long before.
_HEADROOM: Final = 1.3

# With more ahead than anybody had lately, the line is believed only with so much more of its slope: a crowd that comes
# all at once also slows down whoever is inside.
_UNSEEN: Final = 1.5


class Stay:
    """A line through recent stays, and what has to be added to it so that it nearly always suffices.

    The addition is the second most that recent stays were longer than the line said, in seconds and not as a factor:
    what holds an image up, such as other work on the same cores, holds up all alike.
    """

    def __init__(self) -> None:
        self._mean = BatchDuration(first_guess_s=0.0)
        self._recent: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self._most_ahead = 0
        self._addition_s = 0.0
        self._shortest: float | None = None

    def observe(self, ahead: int, seconds: float, *, too_late: bool = False) -> None:
        """Take a stay into account; also of an image whose deadline passed, which stayed at least so long.

        Args:
            ahead: how many were ahead when it was let in.
            seconds: until it was answered.
            too_late: its deadline passed.
        """
        longer = seconds * _TOO_LATE if too_late else seconds
        self._recent.append((ahead, longer - self._mean.predict(ahead + 1) if self._shortest is not None else 0.0))
        self._most_ahead = max(seen for seen, _ in self._recent)
        few = 2 if len(self._recent) >= _MANY else 1
        self._addition_s = max(heapq.nlargest(few, (excess for _, excess in self._recent))[-1], 0.0)
        self._mean.observe(ahead + 1, seconds)
        self._shortest = seconds if self._shortest is None else min(self._shortest, seconds)

    def predict(self, ahead: int) -> float:
        """Seconds within which nearly all images with so many ahead are answered; 0 before anything was observed."""
        line = self._mean.predict(ahead + 1)
        if ahead > self._most_ahead:
            line += (_UNSEEN - 1.0) * (line - self._mean.predict(self._most_ahead + 1))
        return _HEADROOM * line + self._addition_s

    @property
    def shortest_s(self) -> float:
        """The shortest stay ever seen, seconds; 0 before any."""
        return self._shortest or 0.0


# Who is let in, who waits in which lane, and how long that will take.

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


# How fast refusals may leave: making them takes the processor from the model, and some clients ask again at once.

# One costs almost a millisecond of a processor that the model shares; so they take a fifth of a core at most.
_PER_SECOND: Final = 200.0

# So many at once are no storm: a full house refuses a crowd that came together without delay.
_AT_ONCE: Final = 200

# No refusal asks a client to come back sooner than after this.
_LONGEST_S: Final = 1.0


class RefusalPace:
    """Holds a refusal back when too many left lately (a leaky bucket, as ITU-T I.371's generic cell rate algorithm).

    A client that asks again as soon as it was refused is slowed down to one request a second, however many there are;
    whoever waits as long as it was told notices nothing. Not thread-safe: for one event loop.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_until = 0.0

    def next_delay_s(self) -> float:
        """Count one more refusal; for how many seconds it is to be held back, 0 to 1."""
        now = self._clock()
        latest = now + _AT_ONCE / _PER_SECOND + _LONGEST_S
        self._full_until = min(max(self._full_until, now) + 1.0 / _PER_SECOND, latest)
        return max(0.0, self._full_until - now - _AT_ONCE / _PER_SECOND)

    async def hold(self) -> None:
        """Wait until one more refusal may leave."""
        delay = self.next_delay_s()
        if delay > 0.0:
            await asyncio.sleep(delay)
