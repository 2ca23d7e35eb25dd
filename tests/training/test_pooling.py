import pytest
import torch
from torch import nn

from training.descriptor_net import ChannelsLastGeM, ClassToken, DistilledHeads, GeM, PatchGeM


def slow_gem(vectors: list[list[float]], p: float, normalise: bool) -> list[float]:
    """GeM of a list of locations, each a vector of C numbers, in float64."""
    if normalise:
        vectors = [[value / max(sum(v * v for v in row) ** 0.5, 1e-12) for value in row] for row in vectors]
    columns = zip(*vectors, strict=True)
    return [(sum(max(value, 1e-6) ** p for value in column) / len(vectors)) ** (1 / p) for column in columns]


@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
@pytest.mark.parametrize("normalise", [False, True])
def test_gem_is_the_slow_mean(p: float, normalise: bool) -> None:
    spatial = torch.randn(2, 5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pooled = GeM(p, normalise_locations=normalise).double()(spatial)
    for image, found in zip(spatial, pooled, strict=True):
        expected = slow_gem(image.flatten(1).T.tolist(), p, normalise)
        assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_gem_by_hand() -> None:
    spatial = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2)
    assert GeM(1.0)(spatial).item() == pytest.approx(2.0)
    assert GeM(3.0)(spatial).item() == pytest.approx(14 ** (1 / 3))
    assert GeM(3.0)(-spatial).item() == pytest.approx(1e-6)
    bright = torch.tensor([[3.0, 30.0], [4.0, 40.0]]).reshape(1, 2, 1, 2)  # both locations point the same way
    assert GeM(3.0, normalise_locations=True)(bright).tolist()[0] == pytest.approx([0.6, 0.8])


def test_the_exponent_is_trained_by_default() -> None:
    pool = GeM()
    pool(torch.rand(2, 3, 4, 4)).sum().backward()
    assert pool.p.item() == 3.0
    assert pool.p.grad is not None
    assert pool.p.grad != 0
    assert not GeM(learnable=False).p.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_pooled_in_full(dtype: torch.dtype) -> None:
    spatial = torch.rand(2, 3, 4, 4).to(dtype)
    assert torch.equal(GeM()(spatial), GeM()(spatial.float()))


def test_one_pool_for_every_layout() -> None:
    spatial = torch.rand(2, 5, 3, 4)
    expected = GeM()(spatial)
    torch.testing.assert_close(ChannelsLastGeM()(spatial.permute(0, 2, 3, 1)), expected)
    tokens = torch.cat([torch.full((2, 2, 5), 9.0), spatial.flatten(2).transpose(1, 2)], dim=1)
    torch.testing.assert_close(PatchGeM(2)(tokens), expected)
    assert torch.equal(ClassToken()(tokens), torch.full((2, 5), 9.0))


def test_distilled_heads_are_averaged() -> None:
    heads = DistilledHeads(2, 2)
    with torch.no_grad():
        heads.head.weight.copy_(torch.eye(2))
        heads.head_dist.weight.copy_(3 * torch.eye(2))
    nn.init.ones_(heads.head.bias)
    tokens = torch.tensor([[[1.0, 2.0], [10.0, 20.0], [7.0, 7.0]]])
    assert heads(tokens).tolist() == [[(2 + 30) / 2, (3 + 60) / 2]]
