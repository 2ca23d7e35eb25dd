"""The learning rate at moments that can be worked out on paper."""

import pytest

from training.recipe_settings import ScheduleSettings
from training.run.batch_trainer import learning_rate_factor


@pytest.mark.parametrize(
    ("name", "warm_up", "progress", "factor"),
    [
        ("constant", 0.0, 0.0, 1.0),
        ("constant", 0.0, 9.9, 1.0),
        ("constant", 2.0, 0.5, 0.25),
        ("constant", 2.0, 2.0, 1.0),
        ("cosine", 0.0, 0.0, 1.0),
        ("cosine", 0.0, 5.0, 0.5),
        ("cosine", 0.0, 10.0, 0.0),
        ("cosine", 2.0, 1.0, 0.5),
        ("cosine", 2.0, 2.0, 1.0),
        ("cosine", 2.0, 6.0, 0.5),
        ("cosine", 2.0, 8.0, 0.1464466),
        ("cosine", 10.0, 9.0, 0.9),
        ("cosine", 20.0, 5.0, 0.5),  # a warm-up longer than the run ends with it
        ("cosine", 0.0, 11.0, 0.0),  # rounding may carry the last step past the end
    ],
)
def test_factor(name: str, warm_up: float, progress: float, factor: float) -> None:
    schedule = ScheduleSettings(name=name, warm_up_epochs=warm_up)
    assert learning_rate_factor(schedule, progress, 10) == pytest.approx(factor, abs=1e-6)
