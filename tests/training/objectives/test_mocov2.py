import math

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor

from tests.training.objectives import slow_losses
from tests.training.objectives.batches import positions, rows, spread_out
from training.objectives.contrastive import KeyQueue, MocoV2, MocoV2Settings
from training.objectives.objective import DescribedPairs, ObjectiveError


def moco(dim: int, queue_size: int, temperature: float = 0.07) -> MocoV2:
    return MocoV2(dim, MocoV2Settings(queue_size=queue_size, temperature=temperature))


def numbered(*numbers: float) -> Tensor:
    return torch.tensor([[number, 0.0] for number in numbers])


@pytest.mark.parametrize("count", [1, 3, 5])
@pytest.mark.parametrize("queue_size", [5, 7])
@pytest.mark.parametrize("temperature", [0.07, 0.2])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradient_agree_with_the_slow_version(
    count: int, queue_size: int, temperature: float, masked: bool
) -> None:
    objective = moco(6, queue_size, temperature).double()
    x, keys = rows(count, 6, 1), rows(count, 6, 2).detach()
    here = spread_out(count, apart_m=10.0)
    if masked:
        objective.queue.positions.copy_(spread_out(queue_size, apart_m=20.0))
    objective.queue.keys.copy_(rows(queue_size, 6, 3).detach())
    queue = objective.queue.keys.numpy().copy()
    loss, scalars = objective(DescribedPairs(x, target_y=keys, x_positions=here, y_positions=here))
    loss.backward()

    mask = np.array([[masked and abs(10 * i - 20 * j) <= 25 for j in range(queue_size)] for i in range(count)])
    x64, keys64 = x.detach().numpy(), keys.numpy()
    assert loss.item() == pytest.approx(slow_losses.moco(x64, keys64, queue, temperature, mask), rel=1e-12)
    slope = slow_losses.gradient(lambda at: slow_losses.moco(at, keys64, queue, temperature, mask), x64)
    np.testing.assert_allclose(x.grad, slope, rtol=1e-6, atol=1e-7)
    assert scalars["masked"].item() == pytest.approx(mask.sum() / count)


def test_without_mask_it_equals_lightly() -> None:
    ours, theirs, keys = (
        rows(16, 32, 1, torch.float32),
        rows(16, 32, 1, torch.float32),
        rows(16, 32, 2).detach().float(),
    )
    objective = moco(32, 48)
    reference = NTXentLoss(temperature=0.07, memory_bank_size=(48, 32))
    reference.memory_bank.bank.copy_(objective.queue.keys)
    for _ in range(3):
        loss, _ = objective(DescribedPairs(ours, target_y=keys))
        expected = reference(theirs, keys)
        ours.grad = theirs.grad = None
        loss.backward()
        expected.backward()
        torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(objective.queue.keys, reference.memory_bank.bank)


def test_a_masked_key_counts_as_if_it_were_not_in_the_queue() -> None:
    x, keys = rows(2, 4, 1), rows(2, 4, 2).detach()
    here = positions([0.0, 5.0])
    whole, shorter = moco(4, 3).double(), moco(4, 2).double()
    shorter.queue.keys.copy_(whole.queue.keys[:2])
    whole.queue.positions[2] = positions([20.0])[0]
    masked, _ = whole(DescribedPairs(x, target_y=keys, x_positions=here, y_positions=here))
    removed, _ = shorter(DescribedPairs(x, target_y=keys))
    assert masked.item() == pytest.approx(removed.item(), rel=1e-12)


def test_an_aligned_pair_against_orthogonal_keys_on_paper() -> None:
    objective = moco(4, 3, temperature=0.5)
    objective.queue.keys.copy_(torch.eye(4)[1:])
    loss, _ = objective(DescribedPairs(torch.eye(1, 4), target_y=torch.eye(1, 4)))
    assert loss.item() == pytest.approx(math.log1p(3 * math.exp(-2)), rel=1e-6)


def test_the_queue_replaces_the_oldest_keys_and_wraps_round() -> None:
    queue = KeyQueue(5, 2)
    queue.push(numbered(1, 2, 3), spread_out(3))
    assert queue.keys[:3, 0].tolist() == [1, 2, 3]
    assert queue.positions[3:].isnan().all()
    queue.push(numbered(4, 5, 6), None)
    assert queue.keys[:, 0].tolist() == [6, 2, 3, 4, 5]
    assert queue.positions[[0, 3, 4]].isnan().all()
    assert torch.equal(queue.positions[1:3], spread_out(3)[1:])
    queue.push(numbered(7), None)
    assert queue.keys[:, 0].tolist() == [6, 7, 3, 4, 5]
    queue.push(numbered(8, 9, 10, 11, 12), None)
    assert queue.keys[:, 0].tolist() == [11, 12, 8, 9, 10]


def test_a_new_queue_holds_unit_vectors_that_are_nowhere() -> None:
    queue = KeyQueue(64, 8)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(64))
    assert queue.positions.isnan().all()


def test_a_step_pushes_unit_keys_after_reading_and_evaluation_pushes_none() -> None:
    objective = moco(2, 4)
    before = objective.queue.keys.clone()
    batch = DescribedPairs(torch.eye(2), target_y=2 * torch.eye(2), y_positions=positions([0.0, 50.0]))
    objective.eval()(batch)
    assert torch.equal(objective.queue.keys, before)
    objective.train()(batch)
    assert torch.equal(objective.queue.keys, torch.cat([torch.eye(2), before[2:]]))
    assert torch.equal(objective.queue.positions[:2], positions([0.0, 50.0]))


def test_a_queue_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ObjectiveError, match=r"holds 3 keys, fewer than one batch of 4\. Set queue_size to 4 or more"):
        moco(4, 3)(DescribedPairs(torch.eye(4), target_y=torch.eye(4)))
