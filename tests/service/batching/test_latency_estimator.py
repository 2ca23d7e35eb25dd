import pytest

from service.serving.admission import LatencyEstimator


def test_nothing_is_promised_before_anything_was_seen() -> None:
    stay = LatencyEstimator()
    assert (stay.predict(0), stay.predict(50), stay.shortest_s) == (0.0, 0.0, 0.0)


def test_steady_stays_are_predicted_as_they_are_with_some_headroom() -> None:
    stay = LatencyEstimator()
    for ahead in (0, 5, 2, 30, 11) * 60:
        stay.observe(ahead, 0.02 * (ahead + 1) + 0.01)
    assert stay.predict(30) == pytest.approx(1.3 * 0.63, rel=0.05)
    assert stay.shortest_s == pytest.approx(0.03)


def test_uneven_stays_are_predicted_with_the_longest() -> None:
    stay = LatencyEstimator()
    for turn in range(300):
        ahead = turn % 20
        stay.observe(ahead, 0.02 * (ahead + 1) + (0.3 if turn % 10 == 0 else 0.0))
    assert 0.52 < stay.predict(10) < 0.75
    # What holds an image up is no longer with more ahead, nor shorter with none.
    assert stay.predict(19) - stay.predict(0) == pytest.approx(1.3 * 0.02 * 19, rel=0.3)
    assert stay.predict(0) > 0.3


def test_a_single_odd_one_is_no_rule() -> None:
    stay = LatencyEstimator()
    for turn in range(256):
        stay.observe(4, 2.0 if turn == 100 else 0.1)
    assert stay.predict(4) < 0.4


def test_what_came_too_late_would_have_stayed_longer_and_is_forgotten_soon() -> None:
    stay = LatencyEstimator()
    for _ in range(100):
        stay.observe(4, 0.1)
    calm = stay.predict(4)
    for _ in range(3):
        stay.observe(4, 1.0, too_late=True)
    assert stay.predict(4) > calm + 1.0
    for _ in range(256):
        stay.observe(4, 0.1)
    assert stay.predict(4) == pytest.approx(calm, rel=0.02)


def test_a_longer_queue_than_was_seen_lately_is_not_trusted_to_go_on_as_quickly() -> None:
    stay = LatencyEstimator()
    for ahead in (0, 5, 10) * 20:
        stay.observe(ahead, 0.02 * (ahead + 1))
    assert stay.predict(10) == pytest.approx(1.3 * 0.22, rel=0.01)
    assert stay.predict(30) == pytest.approx(1.3 * (0.22 + 1.5 * 0.4), rel=0.01)
    for _ in range(20):
        stay.observe(30, 0.62)
    assert stay.predict(30) == pytest.approx(1.3 * 0.62, rel=0.01)
