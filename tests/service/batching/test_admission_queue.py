"""Admission and lanes, with a clock that is set by hand."""

import pytest

from service.serving.admission import AdmissionQueue, AdmittedPhoto, BatchDuration, Lane, RejectedError


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make(limit: int = 8, max_batch: int = 4) -> tuple[AdmissionQueue[str], Clock]:
    """A model that takes 1 s a batch and 0.1 s an image."""
    clock = Clock()
    duration = BatchDuration()
    for count in (1, 2, 4):
        duration.observe(count, 1.0 + 0.1 * count)
    return AdmissionQueue(limit, max_batch, duration, clock=clock), clock


def let_in(waiting: AdmissionQueue[str], name: str, lane: Lane = "robot", deadline: float = 1e9) -> AdmittedPhoto[str]:
    waiter = waiting.admit(lane, deadline)
    waiting.enqueue(waiter, name)
    return waiter


def names(waiters: list[AdmittedPhoto[str]]) -> list[str | None]:
    return [waiter.item for waiter in waiters]


def test_robots_go_first_and_lanes_keep_their_order() -> None:
    waiting, _ = make(limit=16)
    for name, lane in (("b1", "bulk"), ("r1", "robot"), ("b2", "bulk"), ("r2", "robot"), ("b3", "bulk")):
        let_in(waiting, name, lane)  # type: ignore[arg-type]
    assert names(waiting.take()[0]) == ["r1", "r2", "b1", "b2"]
    waiting.finish(1.0)
    assert names(waiting.take()[0]) == ["b3"]


def test_everyone_inside_is_counted() -> None:
    waiting, _ = make(limit=4)
    decoding = waiting.admit("robot", 1e9)
    let_in(waiting, "a")
    let_in(waiting, "b")
    waiting.take()
    assert (waiting.admitted, waiting.queued, waiting.depth("robot")) == (3, 0, 1)
    waiting.admit("robot", 1e9)
    with pytest.raises(RejectedError, match="4 photos are waiting already") as caught:
        waiting.admit("robot", 1e9)
    assert (caught.value.code, caught.value.reason) == ("queue_full", "queue")
    assert caught.value.retry_after_s is not None
    waiting.release(decoding)
    waiting.admit("robot", 1e9)
    waiting.finish(1.0)
    assert waiting.admitted == 2


@pytest.mark.parametrize(
    ("ahead", "lane", "expected"),
    [
        ([], "robot", 0.0),
        (["robot"] * 3, "robot", 1.4),
        (["robot"] * 4, "robot", 1.4 + 1.1),
        (["bulk"] * 4, "robot", 1.1),
        (["bulk"] * 2 + ["robot"], "bulk", 1.4),
    ],
)
def test_the_wait_is_predicted(ahead: list[Lane], lane: Lane, expected: float) -> None:
    waiting, _ = make()
    for number, other in enumerate(ahead):
        let_in(waiting, str(number), other)
    assert waiting.predicted_wait_s(lane) == pytest.approx(expected)


def test_a_batch_under_way_is_waited_for() -> None:
    waiting, clock = make()
    let_in(waiting, "a")
    waiting.take()
    clock.now += 0.4
    assert waiting.predicted_wait_s("robot") == pytest.approx(1.1 - 0.4 + 1.1)
    clock.now += 10  # slower than ever before: no negative wait
    assert waiting.predicted_wait_s("robot") == pytest.approx(1.1)


def test_what_would_come_too_late_is_refused_at_the_door() -> None:
    waiting, clock = make()
    waiting.admit("robot", clock.now + 0.1)
    with pytest.raises(RejectedError, match=r"would take 1\.20 s, and the deadline is in 0\.50 s") as caught:
        waiting.admit("robot", clock.now + 0.5)
    assert caught.value.reason == "deadline"
    assert caught.value.retry_after_s == pytest.approx(0.7)


def test_those_who_left_or_are_too_late_are_dropped_before_they_cost_anything() -> None:
    waiting, clock = make()
    let_in(waiting, "late", deadline=clock.now + 2)
    gone = let_in(waiting, "gone")
    let_in(waiting, "here")
    gone.abandoned = True
    clock.now += 3
    batch, dropped = waiting.take()
    assert names(batch) == ["here"]
    assert names(dropped) == ["late", "gone"]
    assert waiting.admitted == 1


def test_the_oldest_of_all_lanes() -> None:
    waiting, clock = make()
    assert waiting.oldest() is None
    let_in(waiting, "b", "bulk")
    clock.now += 1
    let_in(waiting, "r")
    assert waiting.oldest() == 100.0


def test_bulk_leaves_room_for_robots() -> None:
    waiting, _ = make(limit=4)
    for name in ("b1", "b2"):
        let_in(waiting, name, "bulk")
    with pytest.raises(RejectedError, match="2 photos are waiting already"):
        waiting.admit("bulk", 1e9)
    for name in ("r1", "r2"):
        let_in(waiting, name)
    assert names(waiting.take()[0]) == ["r1", "r2", "b1", "b2"]


def test_what_really_happened_is_believed_more_than_the_model_alone() -> None:
    """Decoding on the same cores: an image with n ahead has stayed a second for each of them."""
    waiting, clock = make(limit=64)
    for count in (1, 8, 3, 12, 5) * 20:
        inside = [waiting.admit("robot", 1e9) for _ in range(count)]
        for number, waiter in enumerate(inside):
            clock.now += 1.0
            waiting.enqueue(waiter, str(number))
            waiting.take()
            waiting.finish(0.1)
            waiting.answered(waiter)
    for _ in range(10):
        waiting.admit("robot", 1e9)
    assert 10.0 <= waiting.predicted_wait_s("robot") <= 20.0


def test_a_single_stall_does_not_keep_everybody_out() -> None:
    waiting, clock = make()
    first = let_in(waiting, "quick")
    waiting.take()
    clock.now += 0.05
    waiting.finish(0.05)
    waiting.answered(first)
    stalled = let_in(waiting, "stalled")
    waiting.take()
    clock.now += 500
    waiting.finish(500)
    waiting.answered(stalled)
    for _ in range(100):
        waiter = waiting.admit("robot", clock.now + 0.2)
        waiting.enqueue(waiter, "again")
        waiting.take()
        clock.now += 0.05
        waiting.finish(0.05)
        waiting.answered(waiter)
    let_in(waiting, "one")
    assert waiting.predicted_wait_s("robot") < 30
