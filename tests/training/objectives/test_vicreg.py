import numpy as np
import pytest
import torch
from lightly.loss import VICRegLoss

from tests.training.objectives import slow_losses
from tests.training.objectives.batches import rows
from training.objectives.information_maximising import Vicreg, VicregSettings
from training.objectives.objective import DescribedPairs


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 3.0, 7.0)])
def test_loss_and_gradient_agree_with_the_slow_version(
    count: int, dim: int, weights: tuple[float, float, float]
) -> None:
    x, y = rows(count, dim, 1), rows(count, dim, 2)
    settings = VicregSettings(
        head_layers=0, invariance_weight=weights[0], variance_weight=weights[1], covariance_weight=weights[2]
    )
    loss, _ = Vicreg(dim, settings)(DescribedPairs(x, y))
    loss.backward()
    x64, y64 = x.detach().numpy(), y.detach().numpy()
    assert loss.item() == pytest.approx(slow_losses.vicreg(x64, y64, *weights), rel=1e-10)
    x_slope = slow_losses.gradient(lambda at: slow_losses.vicreg(at, y64, *weights), x64)
    y_slope = slow_losses.gradient(lambda at: slow_losses.vicreg(x64, at, *weights), y64)
    np.testing.assert_allclose(x.grad, x_slope, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(y.grad, y_slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("count", [2, 64])
def test_it_equals_lightly(count: int) -> None:
    ours = rows(count, 32, 1, torch.float32), rows(count, 32, 2, torch.float32)
    theirs = rows(count, 32, 1, torch.float32), rows(count, 32, 2, torch.float32)
    loss, _ = Vicreg(32, VicregSettings(head_layers=0))(DescribedPairs(*ours))
    reference = VICRegLoss()(*theirs)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


def test_its_terms_on_paper() -> None:
    # Equal views, two columns of ±2 that do not correlate: standard deviation above 1, so nothing is left to lose.
    x = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    loss, _ = Vicreg(2, VicregSettings(head_layers=0))(DescribedPairs(x, x))
    assert loss.item() == 0.0
    # Shifted by 1: only the invariance term sees it.
    loss, _ = Vicreg(2, VicregSettings(head_layers=0))(DescribedPairs(x, x + 1))
    assert loss.item() == pytest.approx(25.0)
    # All the same: no variance (√1e-4 = 0.01 short of 1 by 0.99), twice half.
    loss, scalars = Vicreg(2, VicregSettings(head_layers=0))(DescribedPairs(torch.ones(4, 2), torch.ones(4, 2)))
    assert loss.item() == pytest.approx(25 * 0.99)
    assert scalars["variance"].item() == pytest.approx(0.99)
