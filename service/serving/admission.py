"""Which photos are admitted, in which lane they wait, and how long that will take."""

import asyncio
import heapq
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Generic, Literal, TypeVar

from retrieval.errors import counted
from service.problems import RequestError

Lane = Literal["robot", "bulk"]
LANES: tuple[Lane, ...] = ("robot", "bulk")
Item = TypeVar("Item")

# Weight that a batch still has when the next one is observed: the last thirty or so count.
_MEMORY: Final = 0.97

# Latencies that are remembered: some seconds' worth under load, so that a bad moment is forgotten soon.
_REMEMBERED: Final = 256

# Of so many latencies or more the longest is left out: a single outlier is no rule, and a stall delays many photos.
_MANY: Final = 32

# A photo whose deadline passed would have taken longer than was measured, by an unknown time.
_TOO_LATE: Final = 1.25

# Share of the fitted latency that is kept free for what is not foreseen, such as other processes. A longer queue would
# gain nothing: batches reach their full size long before.
_HEADROOM: Final = 1.3

# With more photos ahead than any recent one had, the fitted slope counts for so much more: a burst of requests also
# slows down the photos that were admitted before it.
_UNSEEN: Final = 1.5

# A rejection costs almost a millisecond of a processor that the model shares; so rejections take a fifth of a core.
_REJECTIONS_PER_SECOND: Final = 200.0

# A burst of so many is answered without delay.
_REJECTION_BURST: Final = 200

_LONGEST_REJECTION_DELAY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Urgency:
    """How urgent a photo is.

    Attributes:
        lane: robot goes before bulk.
        deadline: when the answer must be there, on `time.monotonic`, seconds.
    """

    lane: Lane
    deadline: float


class RejectedError(RequestError):
    """Not admitted, because it could not be answered in time; the server is healthy.

    Args:
        what: what is wrong.
        retry_after_s: when it is worth trying again, seconds.
        reason: the `queue` is full, or the `deadline` too near.
    """

    def __init__(self, what: str, retry_after_s: float, *, reason: Literal["queue", "deadline"]) -> None:
        super().__init__(
            what, code="queue_full", remedy=f"Try again in {math.ceil(retry_after_s)} s", retry_after_s=retry_after_s
        )
        self.reason = reason


@dataclass(eq=False, slots=True)
class AdmittedPhoto(Generic[Item]):
    """One admitted photo.

    Attributes:
        lane: in which it waits.
        deadline: on the queue's clock, seconds; after it the answer is of no use.
        admitted_at: on the same clock.
        ahead: photos that were to be answered before it when it was admitted.
        item: what the model runs, once the photo is decoded.
        queued_at: when it was decoded.
        abandoned: whether the client has left.
    """

    lane: Lane
    deadline: float
    admitted_at: float
    ahead: int
    item: Item | None = None
    queued_at: float = 0.0
    abandoned: bool = False


class BatchDuration:
    """Predicts how long a batch of n photos takes: a·n + b, fitted to recent batches by weighted least squares.

    The weights fall off exponentially. Neither coefficient goes below 0: more photos never take less time.

    Args:
        first_guess_s: seconds for a single photo, before any batch was observed.
    """

    def __init__(self, first_guess_s: float = 0.05) -> None:
        self._first_guess_s = first_guess_s
        self._weight = self._n = self._nn = self._t = self._nt = 0.0

    def observe(self, count: int, seconds: float) -> None:
        """Take one finished batch into account.

        Args:
            count: photos in it, at least 1.
            seconds: how long it took.
        """
        self._weight = _MEMORY * self._weight + 1.0
        self._n = _MEMORY * self._n + count
        self._nn = _MEMORY * self._nn + count**2
        self._t = _MEMORY * self._t + seconds
        self._nt = _MEMORY * self._nt + count * seconds

    def predict(self, count: int) -> float:
        """Seconds that a batch of `count` photos will take; 0 for none."""
        if count < 1:
            return 0.0
        if self._weight == 0.0:
            return self._first_guess_s * count
        mean_n, mean_t = self._n / self._weight, self._t / self._weight
        spread = self._nn / self._weight - mean_n**2
        # Batches of one size do not determine the slope: the whole time is then attributed to the photos.
        slope = mean_t / mean_n if spread < 1e-9 else (self._nt / self._weight - mean_n * mean_t) / spread
        slope = min(max(slope, 0.0), mean_t / mean_n)
        return slope * count + max(mean_t - slope * mean_n, 0.0)


class LatencyEstimator:
    """Predicts the time from a photo's admission to its answer, by how many photos were ahead of it.

    The model's own a·n + b leaves out decoding, and both share the same cores; measured latencies include it all.
    The prediction is a line through recent latencies plus the second largest recent excess over it. The excess is
    in seconds, not a factor: what delays photos, such as other work on the same cores, delays all alike.
    """

    def __init__(self) -> None:
        self._mean = BatchDuration(first_guess_s=0.0)
        self._recent: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self._most_ahead = 0
        self._excess_s = 0.0
        self._shortest: float | None = None

    def observe(self, ahead: int, seconds: float, *, too_late: bool = False) -> None:
        """Take one latency into account, also that of a photo whose deadline passed.

        Args:
            ahead: photos that were ahead when it was admitted.
            seconds: from admission to answer, or to the deadline.
            too_late: whether the deadline passed.
        """
        longer = seconds * _TOO_LATE if too_late else seconds
        self._recent.append((ahead, longer - self._mean.predict(ahead + 1) if self._shortest is not None else 0.0))
        self._most_ahead = max(seen for seen, _ in self._recent)
        few = 2 if len(self._recent) >= _MANY else 1
        self._excess_s = max(heapq.nlargest(few, (excess for _, excess in self._recent))[-1], 0.0)
        self._mean.observe(ahead + 1, seconds)
        self._shortest = seconds if self._shortest is None else min(self._shortest, seconds)

    def predict(self, ahead: int) -> float:
        """Seconds within which nearly all photos with so many ahead are answered; 0 before any was observed."""
        line = self._mean.predict(ahead + 1)
        if ahead > self._most_ahead:
            line += (_UNSEEN - 1.0) * (line - self._mean.predict(self._most_ahead + 1))
        return _HEADROOM * line + self._excess_s

    @property
    def shortest_s(self) -> float:
        """The shortest latency ever observed, seconds; 0 before any."""
        return self._shortest or 0.0


@dataclass
class AdmissionQueue(Generic[Item]):
    """Counts all photos: those being decoded, those in the lanes, those in the model.

    Not thread-safe: `MicroBatcher` holds its lock around every call.

    Attributes:
        limit: how many photos may be admitted at once; the bulk lane stops at half of it, which leaves room for robots.
        max_batch: how many the model takes at once.
        duration: predicts the seconds of a batch.
        latency: predicts the seconds from admission to answer.
        clock: monotonic seconds.
    """

    limit: int
    max_batch: int
    duration: BatchDuration = field(default_factory=BatchDuration)
    latency: LatencyEstimator = field(default_factory=LatencyEstimator)
    clock: Callable[[], float] = time.monotonic
    _lanes: dict[Lane, deque[AdmittedPhoto[Item]]] = field(default_factory=lambda: {lane: deque() for lane in LANES})
    _decoding: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))
    _running: int = 0
    _running_since: float = 0.0

    @property
    def admitted(self) -> int:
        """Photos that were admitted and are not answered yet."""
        return sum(self._decoding.values()) + self.queued + self._running

    @property
    def queued(self) -> int:
        """Photos that are decoded and wait for the model."""
        return sum(map(len, self._lanes.values()))

    def depth(self, lane: Lane) -> int:
        """Photos of a lane that wait, decoded or not."""
        return self._decoding[lane] + len(self._lanes[lane])

    def admit(self, lane: Lane, deadline: float) -> AdmittedPhoto[Item]:
        """Admit one photo.

        Args:
            lane: robot goes before bulk.
            deadline: on the clock, seconds.

        Raises:
            RejectedError: the limit is reached, or it would be answered too late.
        """
        now = self.clock()
        wait = self.predicted_wait_s(lane)
        full = self.limit if lane == "robot" else max(1, self.limit // 2)
        if self.admitted >= full:
            raise RejectedError(
                f"{counted(self.admitted, 'photo is', 'photos are')} waiting already", max(wait, 0.1), reason="queue"
            )
        if now + wait > deadline:
            raise RejectedError(
                f"the answer would take {wait:.2f} s, and the deadline is in {max(deadline - now, 0.0):.2f} s",
                max(wait - (deadline - now), 0.1),
                reason="deadline",
            )
        photo: AdmittedPhoto[Item] = AdmittedPhoto(lane, deadline, now, self._ahead(lane))
        self._decoding[lane] += 1
        return photo

    def _ahead(self, lane: Lane) -> int:
        """Photos that are answered before one that is admitted now; those being decoded have their places already."""
        before = LANES[: LANES.index(lane) + 1]
        return sum(self._decoding.values()) + sum(len(self._lanes[other]) for other in before) + self._running

    def predicted_wait_s(self, lane: Lane) -> float:
        """Seconds until a photo that is admitted now would be answered.

        The longer of what the model needs for the photos ahead, and what photos with as many ahead have taken. An
        empty server always tries: else a single stall would reject every photo for good.
        """
        if self.admitted == 0:
            return self.latency.shortest_s
        before = LANES[: LANES.index(lane) + 1]
        waiting = sum(self.depth(other) for other in before)
        whole, rest = divmod(waiting + 1, self.max_batch)
        to_come = whole * self.duration.predict(self.max_batch) + self.duration.predict(rest)
        under_way = 0.0
        if self._running:
            under_way = self.duration.predict(self._running) - (self.clock() - self._running_since)
        return max(to_come + max(under_way, 0.0), self.latency.predict(self._ahead(lane)))

    def enqueue(self, photo: AdmittedPhoto[Item], item: Item) -> None:
        """Put a decoded photo into its lane."""
        self._decoding[photo.lane] -= 1
        photo.item = item
        photo.queued_at = self.clock()
        self._lanes[photo.lane].append(photo)

    def release(self, photo: AdmittedPhoto[Item]) -> None:
        """Give back the place of a photo that never reaches its lane: it cannot be decoded, or its client left."""
        self._decoding[photo.lane] -= 1

    def take(self) -> tuple[list[AdmittedPhoto[Item]], list[AdmittedPhoto[Item]]]:
        """Take the next batch out of the lanes, and begin it.

        Returns:
            the batch, robots first, each lane in order; and the photos that were dropped because their deadline has
            passed or their client has left.
        """
        now = self.clock()
        batch: list[AdmittedPhoto[Item]] = []
        dropped: list[AdmittedPhoto[Item]] = []
        for lane in LANES:
            queue = self._lanes[lane]
            while queue and len(batch) < self.max_batch:
                photo = queue.popleft()
                (dropped if photo.abandoned or photo.deadline <= now else batch).append(photo)
        self._running, self._running_since = len(batch), now
        return batch, dropped

    def finish(self, seconds: float) -> None:
        """End the batch that was taken last."""
        if self._running:
            self.duration.observe(self._running, seconds)
        self._running = 0

    def answered(self, photo: AdmittedPhoto[Item]) -> None:
        """Record the latency of a photo that has its answer, or whose deadline has passed."""
        now = self.clock()
        self.latency.observe(photo.ahead, now - photo.admitted_at, too_late=now >= photo.deadline)

    def oldest(self) -> float | None:
        """When the first of the waiting photos was queued, on the clock; None when none waits."""
        return min((queue[0].queued_at for queue in self._lanes.values() if queue), default=None)


class RejectionThrottle:
    """Delays rejections when there are too many (a leaky bucket, as ITU-T I.371's generic cell rate algorithm).

    A client that asks again as soon as it was rejected is slowed down to one request a second, however many there are;
    a client that heeds `Retry-After` sees no delay. Not thread-safe: for one event loop.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._full_until = 0.0

    def next_delay_s(self) -> float:
        """Count one more rejection; for how many seconds to delay it, 0 to 1."""
        now = self._clock()
        latest = now + _REJECTION_BURST / _REJECTIONS_PER_SECOND + _LONGEST_REJECTION_DELAY_S
        self._full_until = min(max(self._full_until, now) + 1.0 / _REJECTIONS_PER_SECOND, latest)
        return max(0.0, self._full_until - now - _REJECTION_BURST / _REJECTIONS_PER_SECOND)

    async def wait(self) -> None:
        """Wait until one more rejection may be answered."""
        delay = self.next_delay_s()
        if delay > 0.0:
            await asyncio.sleep(delay)
