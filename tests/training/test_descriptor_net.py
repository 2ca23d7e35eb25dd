import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.backbones import timm_backbone
from training.descriptor_net import DescriptorNet, GeM


class FixedMap(nn.Module):
    """A backbone whose spatial map is the image itself."""

    def forward_features(self, images: Tensor) -> Tensor:
        return images


def slow_gem(spatial: np.ndarray, p: float, eps: float) -> np.ndarray:
    """Value by value."""
    count, channels, height, width = spatial.shape
    pooled = np.zeros((count, channels))
    for n in range(count):
        for c in range(channels):
            values = [max(float(spatial[n, c, y, x]), eps) ** p for y in range(height) for x in range(width)]
            pooled[n, c] = (sum(values) / len(values)) ** (1.0 / p)
    return pooled


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 4.5])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 4, 5), (1, 7, 1, 6)])
def test_gem_is_the_slow_one(p: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    spatial = torch.randn(shape)
    pooled = GeM(p)(spatial)
    assert pooled.shape == shape[:2]
    np.testing.assert_allclose(pooled.detach().numpy(), slow_gem(spatial.numpy(), p, 1e-6), rtol=1e-4)


def test_gem_with_p_1_is_the_average() -> None:
    spatial = torch.rand(2, 3, 4, 5) + 0.1
    torch.testing.assert_close(GeM(1.0)(spatial).detach(), spatial.mean((-2, -1)))


def test_gem_by_hand() -> None:
    """(1³ + 3³) / 2 = 14; its cube root is 2.4101. A negative value counts as eps."""
    assert GeM(3.0)(torch.tensor([[[[1.0, 3.0]]]])).item() == pytest.approx(14 ** (1 / 3))
    assert GeM(3.0)(torch.tensor([[[[-5.0, 2.0]]]])).item() == pytest.approx(4 ** (1 / 3))


def test_gem_of_nothing_but_zeros_has_a_gradient() -> None:
    """The root of exactly 0 has none: that is what eps is for."""
    spatial = torch.zeros(1, 1, 2, 2, requires_grad=True)
    pool = GeM(3.0)
    pooled = pool(spatial)
    pooled.sum().backward()
    assert pooled.item() == pytest.approx(1e-6, rel=1e-3)
    assert spatial.grad is not None
    assert pool.p.grad is not None
    assert torch.isfinite(spatial.grad).all()
    assert torch.isfinite(pool.p.grad).all()


def test_gem_of_a_large_p_comes_near_the_maximum() -> None:
    assert GeM(60.0)(torch.tensor([[[[0.5, 0.9, 1.0, 0.1]]]])).item() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("learnable", [True, False])
def test_p_is_trained_only_if_learnable(learnable: bool) -> None:
    pool = GeM(3.0, learnable=learnable)
    assert pool.p.requires_grad is learnable
    spatial = torch.rand(1, 2, 3, 3, requires_grad=True)
    pool(spatial).sum().backward()
    assert (pool.p.grad is not None) is learnable


@pytest.mark.parametrize("projection", [None, nn.Linear(5, 9)])
def test_descriptors_are_unit_rows(projection: nn.Linear | None) -> None:
    net = DescriptorNet(FixedMap(), GeM(), projection).eval()
    with torch.inference_mode():
        descriptors = net(torch.rand(6, 5, 4, 3) * 100)
    assert descriptors.shape == (6, 5 if projection is None else 9)
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(6))


def test_a_descriptor_by_hand() -> None:
    """Channels pooled to 3 and 4: unit length 5."""
    images = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1).expand(1, 2, 6, 7)
    torch.testing.assert_close(DescriptorNet(FixedMap(), GeM())(images).detach(), torch.tensor([[0.6, 0.8]]))


def test_a_timm_backbone_has_a_spatial_map_and_no_classifier() -> None:
    backbone = timm_backbone("tf_efficientnet_lite0").eval()
    assert not any(name.startswith("classifier") for name in backbone.state_dict())
    with torch.inference_mode():
        assert backbone.forward_features(torch.zeros(1, 3, 64, 96)).shape == (1, 1280, 2, 3)
