import pytest

from service.batching.stay import Stay


def test_nothing_is_promised_before_anything_was_seen() -> None:
    stay = Stay()
    assert (stay.predict(0), stay.predict(50), stay.shortest_s) == (0.0, 0.0, 0.0)


def test_steady_stays_are_predicted_as_they_are() -> None:
    stay = Stay()
    for ahead in (0, 5, 2, 30, 11) * 60:
        stay.observe(ahead, 0.02 * (ahead + 1) + 0.01)
    assert stay.predict(30) == pytest.approx(0.63, rel=0.05)
    assert stay.shortest_s == pytest.approx(0.03)


def test_uneven_stays_are_predicted_with_their_spread() -> None:
    steady, uneven = Stay(), Stay()
    for turn in range(300):
        ahead = turn % 20
        steady.observe(ahead, 0.02 * (ahead + 1))
        uneven.observe(ahead, 0.02 * (ahead + 1) * (0.5 if turn % 2 else 1.5))
    assert uneven.predict(10) > 1.8 * steady.predict(10)
    assert uneven.predict(10) < 4 * steady.predict(10)


def test_caution_grows_with_what_came_too_late_and_wears_off() -> None:
    stay = Stay()
    for _ in range(100):
        stay.observe(4, 0.1)
    calm = stay.predict(4)
    for _ in range(3):
        stay.observe(4, 0.1, too_late=True)
    assert stay.predict(4) == pytest.approx(1.25**3 * calm, rel=0.02)
    for _ in range(100):
        stay.observe(4, 0.1, too_late=True)
    assert stay.predict(4) == pytest.approx(4 * calm, rel=0.02)
    for _ in range(5000):
        stay.observe(4, 0.1)
    assert stay.predict(4) == pytest.approx(calm, rel=0.02)
