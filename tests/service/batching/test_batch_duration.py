import pytest

from service.serving.admission import BatchDuration


def test_before_anything_was_measured() -> None:
    assert BatchDuration(0.02).predict(5) == pytest.approx(0.1)
    assert BatchDuration().predict(0) == 0.0


def test_a_line_is_found() -> None:
    duration = BatchDuration()
    for count in (1, 4, 2, 16, 8):
        duration.observe(count, 0.010 * count + 0.005)
    assert duration.predict(32) == pytest.approx(0.325)
    assert duration.predict(1) == pytest.approx(0.015)


def test_batches_of_one_size_are_taken_as_proportional() -> None:
    duration = BatchDuration()
    for _ in range(5):
        duration.observe(4, 0.2)
    assert duration.predict(4) == pytest.approx(0.2)
    assert duration.predict(8) == pytest.approx(0.4)


def test_more_images_never_take_less() -> None:
    duration = BatchDuration()
    duration.observe(1, 0.5)
    duration.observe(32, 0.1)
    assert duration.predict(32) >= duration.predict(1) > 0


def test_a_change_of_speed_is_followed() -> None:
    duration = BatchDuration()
    for count in (1, 2, 4, 8) * 50:
        duration.observe(count, 0.01 * count)
    for count in (1, 2, 4, 8) * 50:
        duration.observe(count, 0.03 * count)
    assert duration.predict(8) == pytest.approx(0.24, rel=0.02)
