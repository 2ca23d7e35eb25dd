"""What was freed is given back while the server runs, and no more after it has stopped."""

import threading
import time

from service.serving.loading import HeapTrimmer


def test_it_gives_back_at_once_again_and_again_and_stops() -> None:
    turns = threading.Semaphore(0)
    keeper = HeapTrimmer(0.01, turns.release)
    keeper.start()
    for _ in range(3):
        assert turns.acquire(timeout=30.0)
    keeper.stop()
    while turns.acquire(blocking=False):
        pass
    time.sleep(0.05)
    assert not turns.acquire(blocking=False)


def test_one_that_never_ran_can_be_stopped() -> None:
    HeapTrimmer().stop()
