"""Reading many photos: some ahead of who needs them, in order, with a tally of those that cannot be read."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

from retrieval.errors import ImageError, ReferenceDataError, counted
from retrieval.machine import available_cores

# Items in work for each thread: enough that none waits for the slowest.
_AHEAD_PER_THREAD: Final = 4

# An error names so many unreadable photos.
_NAMED: Final = 10

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def read_ahead(
    work: Callable[[Item], Outcome],
    items: Iterable[Item],
    *,
    threads: int | None = None,
    ahead: int | None = None,
    size: Callable[[Item], int] = lambda _: 1,
) -> Iterator[Outcome]:
    """Do some work on many items in threads, with the outcomes in the order of the items.

    The threads have ended when the iterator is exhausted or closed, also by an error or Ctrl-C.

    Args:
        work: on one item; it should release Python's lock most of its time.
        items: taken as they are needed, by the caller's thread.
        threads: by default one for each core.
        ahead: items, or what `size` counts of them, that are in work or wait to be asked for; by default four for each
            thread. It bounds the memory: one item is allowed even if it is larger.
        size: of an item, at least 1.

    Yields:
        the outcome of each item; what the work raises is raised in its place.
    """
    threads = threads or available_cores()
    allowed = ahead if ahead is not None else threads * _AHEAD_PER_THREAD
    remaining = iter(items)
    waiting: deque[tuple[Future[Outcome], int]] = deque()
    held = 0
    with ThreadPoolExecutor(threads, "read") as pool:
        try:
            while True:
                while held < allowed:
                    try:
                        item = next(remaining)
                    except StopIteration:
                        break
                    count = size(item)
                    waiting.append((pool.submit(work, item), count))
                    held += count
                if not waiting:
                    return
                future, count = waiting.popleft()
                outcome = future.result()
                held -= count
                yield outcome
        finally:
            for future, _ in waiting:
                future.cancel()


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A photo that is left out.

    Attributes:
        path: of the photo; in an index relative to the root of its source where possible, with ``/``.
        code: of the error that its photo gave, or ``skipped`` where the source itself left it out.
        reason: one sentence without a full stop.
        remedy: what to do about it, or None.
    """

    path: str
    code: str
    reason: str
    remedy: str | None = None

    @classmethod
    def of(cls, path: str | Path, error: ImageError) -> Self:
        """A photo that gave an error."""
        return cls(str(path), error.code, error.what, error.remedy)


class UnreadableTally:
    """Counts photos that cannot be read, and ends the work when there are too many.

    Args:
        allowed: how many there may be.
    """

    def __init__(self, allowed: int) -> None:
        self.allowed = allowed
        self.count = 0
        self.photos: list[LeftOut] = []

    def add(self, photo: LeftOut, count: int = 1) -> None:
        """Note a photo; `count` references share it."""
        self.photos.append(photo)
        self.count += count

    def check(self, spare: int = 0) -> None:
        """Refuse more unreadable photos than are allowed.

        Args:
            spare: so many more are no reason to stop yet, so that the error can name them together.

        Raises:
            ReferenceDataError: there are too many (``too_many_unreadable``); the first ones are named.
        """
        if self.count <= self.allowed + spare:
            return
        first = self.photos[0]
        others = "".join(f"; {one.path}: {one.reason}" for one in self.photos[1:_NAMED])
        more = f"; and {len(self.photos) - _NAMED} more" if len(self.photos) > _NAMED else ""
        unreadable = counted(self.count, "photo is unreadable", "photos are unreadable")
        raise ReferenceDataError(
            f"{first.reason}{others}{more}. So far {unreadable}, {self.allowed or 'none'} may be",
            where=first.path,
            remedy="Repair or remove what is named, or allow more with --max-unreadable (a job: max_unreadable)",
            code="too_many_unreadable",
        )


class PhotoRate:
    """Photos a second since the work began here: what an earlier run did does not count, nor does the first batch."""

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None
        self._done = 0

    def update(self, done: int) -> None:
        """Note how many photos are done by now."""
        self._done = done
        if self._began is None:
            self._began = (time.monotonic(), done)

    @property
    def per_second(self) -> float | None:
        """The rate, or None as long as nothing can be said."""
        if self._began is None or self._done <= self._began[1]:
            return None
        return (self._done - self._began[1]) / max(1e-3, time.monotonic() - self._began[0])
