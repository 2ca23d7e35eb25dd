import asyncio
import time

import pytest

from service.serving.admission import RejectionThrottle


class Clock:
    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_crowd_is_refused_without_delay() -> None:
    throttle = RejectionThrottle(Clock())
    assert max(throttle.next_delay_s() for _ in range(200)) == pytest.approx(0.0, abs=1e-9)


def test_two_hundred_a_second_are_never_held_back() -> None:
    clock = Clock()
    throttle = RejectionThrottle(clock)
    for _ in range(2000):
        assert throttle.next_delay_s() == pytest.approx(0.0, abs=1e-9)
        clock.now += 1 / 200


def test_a_storm_leaves_at_two_hundred_a_second_and_nobody_is_held_for_more_than_one() -> None:
    throttle = RejectionThrottle(Clock())
    delays = [throttle.next_delay_s() for _ in range(1000)][200:]
    assert delays[:3] == pytest.approx([1 / 200, 2 / 200, 3 / 200])
    assert delays[200:] == pytest.approx([1.0] * 600)


def test_calm_is_forgiven() -> None:
    clock = Clock()
    throttle = RejectionThrottle(clock)
    for _ in range(1000):
        throttle.next_delay_s()
    clock.now += 3.0
    assert throttle.next_delay_s() == 0.0


def test_clients_that_ask_again_at_once_are_slowed_down() -> None:
    async def client(throttle: RejectionThrottle, until: float) -> int:
        asked = 0
        while time.monotonic() < until:
            await throttle.wait()
            asked += 1
        return asked

    async def storm() -> int:
        throttle, until = RejectionThrottle(), time.monotonic() + 0.5
        return sum(await asyncio.gather(*(client(throttle, until) for _ in range(50))))

    # 200 at once, 100 in half a second, and the last of each client; without a throttle it is tens of thousands.
    assert 200 <= asyncio.run(storm()) <= 360
