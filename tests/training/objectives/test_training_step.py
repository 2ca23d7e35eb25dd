import copy

import pytest
import torch

from tests.training.objectives.training_step import Step
from training.objectives.registry import OBJECTIVES


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_repeating_a_batch_lowers_its_loss(name: str) -> None:
    torch.manual_seed(0)
    step = Step(name)
    losses = [step.run(seed=1) for _ in range(40)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", list(OBJECTIVES))
def test_training_resumes_from_state_dicts_bit_for_bit(name: str) -> None:
    torch.manual_seed(0)
    step = Step(name)
    for seed in range(3):
        step.run(seed)
    modules, optimizer = copy.deepcopy(step.model.state_dict()), copy.deepcopy(step.optimizer.state_dict())
    expected = [step.run(seed) for seed in range(3, 6)]

    torch.manual_seed(99)
    resumed = Step(name)
    resumed.model.load_state_dict(modules, strict=True)
    resumed.optimizer.load_state_dict(optimizer)
    assert [resumed.run(seed) for seed in range(3, 6)] == expected
