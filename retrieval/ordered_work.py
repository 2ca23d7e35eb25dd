"""Work on many items on all cores, with outcomes in the items' order and few of them in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from retrieval.machine import available_cores

# Items in hand for each thread: enough that none waits for the slowest.
_AHEAD: Final = 4

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


def in_order(work: Callable[[Item], Outcome], items: Iterable[Item]) -> Iterator[Outcome]:
    """Do some work on as many threads as there are cores.

    Args:
        work: on one item; releases Python's lock for most of its time, or threads are of no use.
        items: taken as they are needed.

    Yields:
        the outcome of each item, in order; what the work raises is raised in its place.
    """
    threads = available_cores()
    with ThreadPoolExecutor(threads, "work") as pool:
        waiting: deque[Future[Outcome]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) == threads * _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
