import threading
import time

import pytest

from retrieval.machine import read_ahead


def test_outcomes_come_in_the_order_of_the_items() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(read_ahead(work, range(50))) == [item * item for item in range(50)]


def test_few_items_are_read_ahead() -> None:
    taken = 0

    def items():
        nonlocal taken
        for item in range(1000):
            taken = item + 1
            yield item

    outcomes = read_ahead(lambda item: item, items())
    assert next(outcomes) == 0
    assert taken < 500
    outcomes.close()


def test_a_failure_comes_in_its_place_and_ends_the_threads() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    outcomes = read_ahead(work, range(100))
    assert [next(outcomes) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(outcomes)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read")]
