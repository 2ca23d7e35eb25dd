import numpy as np
import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch import Tensor

from tests.training.objectives import slow_losses
from tests.training.objectives.batches import rows
from training.objectives.objective import DescribedPairs, ObjectiveError
from training.objectives.self_distillation import Byol, ByolSettings, Simsiam, SimsiamSettings, prediction_loss


def four(count: int, dim: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [3 * rows(count, dim, seed, dtype).detach() for seed in range(4)]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dim", [3, 8])
def test_prediction_loss_and_gradient_agree_with_the_slow_version(count: int, dim: int) -> None:
    tensors = four(count, dim)
    for tensor in tensors:
        tensor.requires_grad_()
    loss, _ = prediction_loss(*tensors)
    loss.backward()
    numbers = [tensor.detach().numpy() for tensor in tensors]
    assert loss.item() == pytest.approx(slow_losses.prediction(*numbers), rel=1e-12)
    for place in (0, 1):
        slope = slow_losses.gradient(
            lambda at, place=place: slow_losses.prediction(*numbers[:place], at, *numbers[place + 1 :]), numbers[place]
        )
        np.testing.assert_allclose(tensors[place].grad, slope, rtol=1e-6, atol=1e-8)
    assert tensors[2].grad is None
    assert tensors[3].grad is None


def test_prediction_loss_is_four_plus_four_times_lightly_with_exactly_four_times_its_gradient() -> None:
    ours, theirs = four(16, 32, torch.float32), four(16, 32, torch.float32)
    for tensor in (*ours[:2], *theirs[:2]):
        tensor.requires_grad_()
    cosine = NegativeCosineSimilarity()
    reference = 0.5 * (cosine(theirs[0], theirs[3]) + cosine(theirs[1], theirs[2]))
    loss, _ = prediction_loss(*ours)
    reference.backward()
    loss.backward()
    torch.testing.assert_close(loss, 4 + 4 * reference, rtol=1e-6, atol=1e-6)
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        assert torch.equal(a.grad, 4 * b.grad)


def test_aligned_orthogonal_and_opposite_predictions_on_paper() -> None:
    east, north = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    assert prediction_loss(east, north, north, east)[0].item() == pytest.approx(0.0, abs=1e-6)
    assert prediction_loss(east, north, east, north)[0].item() == pytest.approx(4.0)
    assert prediction_loss(east, north, -north, -east)[0].item() == pytest.approx(8.0)


def test_simsiam_is_the_prediction_loss_against_its_own_stopped_projection() -> None:
    objective = Simsiam(6, SimsiamSettings(head_width=8, predictor_width=16)).double()
    x, y = rows(5, 6, 1), rows(5, 6, 2)
    loss, _ = objective(DescribedPairs(x, y))
    projected_x, projected_y = objective.projection(x), objective.projection(y)
    predicted_x, predicted_y = objective.predictor(projected_x), objective.predictor(projected_y)
    expected, _ = prediction_loss(predicted_x, predicted_y, projected_x.detach(), projected_y.detach())
    assert loss.item() == expected.item()
    for a, b in zip(torch.autograd.grad(loss, [x, y]), torch.autograd.grad(expected, [x, y]), strict=True):
        assert torch.equal(a, b)
    assert objective.target_decay is None


def test_byol_predicts_the_targets_it_is_given() -> None:
    objective = Byol(6, ByolSettings(head_width=8, predictor_width=16)).double()
    x, y, targets = rows(5, 6, 1), rows(5, 6, 2), four(5, 8)[:2]
    loss, _ = objective(DescribedPairs(x, y, target_x=targets[0], target_y=targets[1]))
    predictions = [objective.predictor(objective.projection(view)) for view in (x, y)]
    numbers = [tensor.detach().numpy() for tensor in (*predictions, *targets)]
    assert loss.item() == pytest.approx(slow_losses.prediction(*numbers), rel=1e-12)


def test_one_pair_is_refused() -> None:
    with pytest.raises(ObjectiveError, match="at least 2 pairs"):
        Simsiam(4, SimsiamSettings(head_width=8)).check_batch_size(1)
