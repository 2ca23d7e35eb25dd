import pytest
import torch
from torch import nn

from tests.training.objectives.batches import spread_out
from training.objectives.contrastive import MocoV2, MocoV2Settings
from training.objectives.objective import DescribedPairs, Objective
from training.objectives.pair_model import MomentumEncoder, PairModel, PairViews
from training.objectives.self_distillation import Byol, ByolSettings


def encoder() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4))


def fill(module: nn.Module, value: float) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(value)


def test_the_average_by_hand() -> None:
    online, head = encoder(), nn.Linear(4, 2)
    fill(online, 1.0)
    fill(head, 1.0)
    target = MomentumEncoder(online, head, decay=0.9)
    fill(online, 3.0)
    fill(head, -1.0)
    target.update(online, head)
    assert all(torch.allclose(p, torch.tensor(0.9 * 1 + 0.1 * 3)) for p in target.encoder.parameters())
    assert all(torch.allclose(p, torch.tensor(0.9 * 1 - 0.1 * 1)) for p in target.projection.parameters())
    target.update(online, head)
    assert all(torch.allclose(p, torch.tensor(0.9 * 1.2 + 0.1 * 3)) for p in target.encoder.parameters())


@pytest.mark.parametrize(("decay", "expected"), [(1.0, 1.0), (0.0, 3.0)])
def test_the_extremes_of_decay(decay: float, expected: float) -> None:
    online, head = encoder(), nn.Identity()
    fill(online, 1.0)
    target = MomentumEncoder(online, head, decay)
    fill(online, 3.0)
    target.update(online, head)
    assert all((p == expected).all() for p in target.encoder.parameters())


def test_it_equals_lightlys_update_momentum() -> None:
    from lightly.models.utils import update_momentum

    online, head = encoder(), nn.Linear(4, 2)
    target = MomentumEncoder(encoder(), nn.Linear(4, 2), decay=0.996)
    theirs = MomentumEncoder(target.encoder, target.projection, decay=0.996)
    target.update(online, head)
    update_momentum(online, theirs.encoder, m=0.996)
    update_momentum(head, theirs.projection, m=0.996)
    for a, b in zip(target.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_batch_norms_statistics_are_its_own() -> None:
    online = encoder()
    target = MomentumEncoder(online, nn.Identity(), decay=0.0)
    online(torch.randn(8, 3, 2, 2) + 5)
    target.update(online, nn.Identity())
    assert (target.encoder[2].running_mean == 0).all()
    assert target.encoder[2].num_batches_tracked == 0
    assert target(torch.randn(8, 3, 2, 2)).shape == (8, 4)
    assert target.encoder[2].num_batches_tracked == 1


def test_it_learns_nothing_from_gradients() -> None:
    online = encoder()
    target = MomentumEncoder(online, nn.Linear(4, 2), decay=0.5)
    assert not any(parameter.requires_grad for parameter in target.parameters())
    assert all(parameter.requires_grad for parameter in online.parameters())
    assert not target(torch.randn(4, 3, 2, 2)).requires_grad


def described(model: PairModel, x_images: torch.Tensor, y_images: torch.Tensor) -> DescribedPairs:
    """What the model gives its objective."""
    given: list[DescribedPairs] = []
    model.objective.register_forward_pre_hook(lambda objective, pairs: given.extend(pairs))
    model(PairViews(x_images, y_images, None, spread_out(6), spread_out(6)))
    return given[0]


def test_byol_describes_both_views_with_both_encoders() -> None:
    objective: Objective = Byol(4, ByolSettings(head_width=8, predictor_width=8, decay=0.7))
    model = PairModel(encoder(), objective)
    assert model.target.decay == 0.7
    x_images, y_images = torch.randn(2, 6, 3, 2, 2)
    pairs = described(model, x_images, y_images)
    # A fresh target is the online encoder, in train mode with the same batch statistics.
    assert torch.equal(pairs.target_x, objective.projection(pairs.x))
    assert torch.equal(pairs.target_y, objective.projection(pairs.y))


def test_moco_sends_x_to_the_online_encoder_and_y_to_the_target() -> None:
    objective = MocoV2(4, MocoV2Settings(queue_size=8))
    online = encoder()
    x_images, y_images = torch.randn(2, 6, 3, 2, 2)
    pairs = described(PairModel(online, objective), x_images, y_images)
    assert pairs.y is None
    assert pairs.target_x is None
    assert torch.equal(pairs.x, online(x_images))
    assert torch.equal(pairs.target_y, online(y_images))
