import pytest

from tests.training.objectives.training_step import SMALL
from training.objectives.objective import ObjectiveError
from training.objectives.registry import OBJECTIVES, build_objective, objective_class, objective_settings


def test_the_seven() -> None:
    assert set(OBJECTIVES) == set(SMALL)
    built = {name: build_objective(name, 8, SMALL[name]) for name in OBJECTIVES}
    assert {name for name, objective in built.items() if objective.target_decay is not None} == {"byol", "mocov2"}
    assert {name for name, objective in built.items() if objective.target_views} == {"byol", "mocov2"}
    assert {name for name in OBJECTIVES if objective_class(name).needs_negatives} == {"triplet"}


def test_an_unknown_objective_lists_the_choices() -> None:
    with pytest.raises(ObjectiveError, match=r"no objective 'simclear'\. Choose one of triplet, simclr, mocov2, byol"):
        objective_class("simclear")


def test_an_unknown_setting_lists_the_valid_ones() -> None:
    with pytest.raises(ObjectiveError, match=r"tempratur: Extra inputs .* Its settings are temperature, head_layers"):
        objective_settings("simclr", {"tempratur": 0.1})


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("simclr", {"temperature": 0}),
        ("mocov2", {"queue_size": 0}),
        ("byol", {"decay": 1.5}),
        ("triplet", {"margin": -1}),
    ],
)
def test_a_setting_outside_its_domain_is_refused(name: str, keys: dict[str, float]) -> None:
    with pytest.raises(ObjectiveError, match=next(iter(keys))):
        objective_settings(name, keys)


def test_settings_cannot_be_changed() -> None:
    settings = objective_settings("simclr", {})
    with pytest.raises(ValueError, match="frozen"):
        settings.temperature = 1.0
