import math

import pytest
import torch

from training.run.validation import effective_rank, measure_collapse


def random_units(count: int, dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=generator), dim=1)


def test_effective_rank_on_paper() -> None:
    assert effective_rank(torch.eye(7)) == pytest.approx(7.0, rel=1e-6)
    assert effective_rank(torch.ones(5, 3)) == pytest.approx(1.0, abs=1e-5)
    assert effective_rank(torch.zeros(5, 3)) == 1.0
    # Singular values 3 and 1: shares 3/4 and 1/4.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(entropy), rel=1e-6)


def test_uniform_descriptors_fill_their_space() -> None:
    report = measure_collapse(random_units(400, 16))
    assert report.spread == pytest.approx(1.0, abs=0.05)
    assert report.effective_rank == pytest.approx(16, abs=0.2)
    assert report.possible_rank == 16
    assert report.warning is None


def test_spread_on_paper() -> None:
    # ±e1 four times each: unbiased variance 8/7 in one of four dimensions; mean deviation √(8/7)/4, times √4.
    east = torch.eye(4)[:1]
    report = measure_collapse(torch.cat([east, -east] * 4))
    assert report.spread == pytest.approx(math.sqrt(8 / 7) / 4 * 2)
    assert report.effective_rank == pytest.approx(1.0, abs=1e-4)


def test_equal_descriptors_are_a_collapse() -> None:
    report = measure_collapse(random_units(1, 64).expand(50, 64))
    assert report.spread < 1e-5
    assert report.warning is not None
    assert "nearly the same for every image" in report.warning


def test_a_few_dimensions_are_a_collapse() -> None:
    flat = torch.cat([random_units(200, 2), torch.zeros(200, 126)], dim=1)
    report = measure_collapse(flat)
    assert report.effective_rank == pytest.approx(2.0, abs=0.05)
    assert report.warning is not None
    assert "vary in 2.0 of 128 possible dimensions" in report.warning


def test_a_common_mean_does_not_count() -> None:
    descriptors = random_units(200, 16)
    moved = measure_collapse(descriptors + 3.0)
    assert moved.spread == pytest.approx(measure_collapse(descriptors).spread, rel=1e-4)
    assert moved.effective_rank == pytest.approx(measure_collapse(descriptors).effective_rank, rel=1e-4)


def test_numbers_that_are_not_finite_are_reported() -> None:
    report = measure_collapse(torch.full((8, 4), math.nan))
    assert report.warning is not None
    assert "not finite" in report.warning


def test_too_few_descriptors_tell_nothing() -> None:
    assert measure_collapse(torch.eye(7)) is None
