import numpy as np
import pytest
import torch
from lightly.loss import BarlowTwinsLoss

from tests.training.objectives import slow_losses
from tests.training.objectives.batches import rows
from training.objectives.information_maximising import BarlowTwins, BarlowTwinsSettings, barlow_twins_terms
from training.objectives.objective import DescribedPairs


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("dim", [2, 5])
@pytest.mark.parametrize("scale", [0.02, 1.0])
@pytest.mark.parametrize("weight", [0.0051, 0.5])
def test_loss_and_gradient_agree_with_the_slow_version(count: int, dim: int, scale: float, weight: float) -> None:
    x, y = ((scale * rows(count, dim, seed)).detach().requires_grad_() for seed in (1, 2))
    objective = BarlowTwins(dim, BarlowTwinsSettings(head_layers=0, redundancy_weight=weight))
    loss, scalars = objective(DescribedPairs(x, y))
    loss.backward()
    x64, y64 = x.detach().numpy(), y.detach().numpy()
    assert loss.item() == pytest.approx(slow_losses.barlow_twins(x64, y64, weight), rel=1e-10)
    assert loss.item() == pytest.approx((scalars["invariance"] + weight * scalars["redundancy"]).item())
    x_slope = slow_losses.gradient(lambda at: slow_losses.barlow_twins(at, y64, weight), x64)
    y_slope = slow_losses.gradient(lambda at: slow_losses.barlow_twins(x64, at, weight), y64)
    np.testing.assert_allclose(x.grad, x_slope, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(y.grad, y_slope, rtol=1e-5, atol=1e-6)


def test_equal_decorrelated_views_on_paper() -> None:
    # Columns of ±100: variance 4/3 · 10⁴, correlation of a column with itself (N − 1)/N = 3/4 and with the other 0.
    x = 100 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    invariance, redundancy = barlow_twins_terms(x, x)
    assert invariance.item() == pytest.approx(2 * (3 / 4 - 1) ** 2, rel=1e-6)
    assert redundancy.item() == pytest.approx(0.0, abs=1e-12)
    # The same column twice: everything correlates with everything.
    invariance, redundancy = barlow_twins_terms(x[:, [0, 0]], x[:, [0, 0]])
    assert redundancy.item() == pytest.approx(2 * (3 / 4) ** 2, rel=1e-6)


def test_it_differs_from_lightly_as_the_specification_says() -> None:
    # N = 64, D = 256 and unit variance: lightly's loss is 7.7 % off, its gradient points the same way.
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 256, generator=generator)
    x, y = ((base + 0.5 * torch.randn(64, 256, generator=generator)).requires_grad_() for _ in range(2))
    ours, _ = BarlowTwins(256, BarlowTwinsSettings(head_layers=0))(DescribedPairs(x, y))
    theirs = BarlowTwinsLoss(lambda_param=0.0051)(x, y)
    assert ours.item() != pytest.approx(theirs.item(), rel=0.005)
    slopes = [torch.autograd.grad(loss, x)[0].flatten() for loss in (ours, theirs)]
    assert torch.nn.functional.cosine_similarity(*slopes, dim=0) > 0.999
