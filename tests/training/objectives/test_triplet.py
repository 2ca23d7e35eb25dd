import math

import numpy as np
import pytest
import torch

from tests.training.objectives import slow_losses
from tests.training.objectives.batches import rows
from training.objectives.contrastive import Triplet, TripletSettings
from training.objectives.objective import DescribedPairs


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("negatives_each", [1, 2, 4])
@pytest.mark.parametrize("dim", [3, 8])
@pytest.mark.parametrize("margin", [0.1, 1.0])
def test_loss_and_gradient_agree_with_the_slow_version(
    count: int, negatives_each: int, dim: int, margin: float
) -> None:
    x, y = rows(count, dim, 1), rows(count, dim, 2)
    negatives = rows(count * negatives_each, dim, 3).detach().view(count, negatives_each, dim).requires_grad_()
    loss, _ = Triplet(dim, TripletSettings(margin=margin))(DescribedPairs(x, y, negatives=negatives))
    loss.backward()
    x64, y64, n64 = (tensor.detach().numpy() for tensor in (x, y, negatives))
    assert loss.item() == pytest.approx(slow_losses.triplet(x64, y64, n64, margin), rel=1e-12)
    slopes = [
        slow_losses.gradient(lambda at: slow_losses.triplet(at, y64, n64, margin), x64),
        slow_losses.gradient(lambda at: slow_losses.triplet(x64, at, n64, margin), y64),
        slow_losses.gradient(lambda at: slow_losses.triplet(x64, y64, at, margin), n64),
    ]
    for tensor, slope in zip((x, y, negatives), slopes, strict=True):
        np.testing.assert_allclose(tensor.grad, slope, rtol=1e-6, atol=1e-8)


def test_it_equals_torchs_sum_over_batch_times_negatives() -> None:
    x, y = rows(4, 16, 1, torch.float32), rows(4, 16, 2, torch.float32)
    negatives = rows(8, 16, 3, torch.float32).view(4, 2, 16)
    loss, _ = Triplet(16, TripletSettings())(DescribedPairs(x, y, negatives=negatives))
    summed = torch.nn.TripletMarginLoss(margin=0.1, p=2, reduction="sum")
    total = sum(summed(x, y, negatives[:, k]) for k in range(2))
    torch.testing.assert_close(loss, total / (4 * 2), rtol=1e-6, atol=1e-7)


def test_it_equals_pytorch_metric_learning_with_a_mean_reducer() -> None:
    from pytorch_metric_learning import losses, reducers

    x, y = rows(4, 16, 1, torch.float32), rows(4, 16, 2, torch.float32)
    negatives = rows(8, 16, 3, torch.float32).detach().view(4, 2, 16)
    triples = torch.tensor([[i, 4 + i, 8 + 2 * i + k] for i in range(4) for k in range(2)])
    # It normalises what it is given, which takes the radial part out of the gradient: do the same before ours.
    everything = torch.cat([x, y, negatives.flatten(0, 1)])
    reference = losses.TripletMarginLoss(margin=0.1, reducer=reducers.MeanReducer())(
        everything, torch.arange(16), indices_tuple=tuple(triples.T)
    )
    normalize = torch.nn.functional.normalize
    loss, _ = Triplet(16, TripletSettings())(DescribedPairs(normalize(x), normalize(y), negatives=negatives))
    torch.testing.assert_close(loss, reference, rtol=1e-5, atol=1e-5)
    for a, b in zip(torch.autograd.grad(loss, [x, y]), torch.autograd.grad(reference, [x, y]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_two_orthogonal_vectors_on_paper() -> None:
    east, north = torch.eye(2, dtype=torch.float64)[:1], torch.eye(2, dtype=torch.float64)[1:]
    objective = Triplet(2, TripletSettings())
    # The positive is the query, the negative √2 away: nothing left to learn.
    loss, scalars = objective(DescribedPairs(east, east, negatives=north[None]))
    assert loss.item() == 0.0
    assert scalars["active"].item() == 0.0
    # The other way round: √2 + 0.1.
    loss, scalars = objective(DescribedPairs(east, north, negatives=east[None]))
    assert loss.item() == pytest.approx(math.sqrt(2) + 0.1, abs=1e-5)
    assert scalars["active"].item() == 1.0
    assert scalars["positive_distance"].item() == pytest.approx(math.sqrt(2))
