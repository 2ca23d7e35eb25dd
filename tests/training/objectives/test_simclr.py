import math

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss

from tests.training.objectives import slow_losses
from tests.training.objectives.batches import positions, rows, spread_out
from training.objectives.contrastive import Simclr, SimclrSettings, nt_xent
from training.objectives.objective import DescribedPairs, ObjectiveError
from training.objectives.pair_model import PairModel, PairViews


def no_head(temperature: float = 0.07) -> Simclr:
    return Simclr(4, SimclrSettings(temperature=temperature, head_layers=0))


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("dim", [3, 8])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradient_agree_with_the_slow_version(count: int, dim: int, temperature: float, masked: bool) -> None:
    x, y = rows(count, dim, 1), rows(count, dim, 2)
    mask = np.random.default_rng(3).random((2 * count, 2 * count)) < 0.4 if masked else None
    loss, _ = nt_xent(x, y, temperature, None if mask is None else torch.from_numpy(mask))
    loss.backward()

    x64, y64 = x.detach().numpy(), y.detach().numpy()
    assert loss.item() == pytest.approx(slow_losses.nt_xent(x64, y64, temperature, mask), rel=1e-12)
    x_slope = slow_losses.gradient(lambda at: slow_losses.nt_xent(at, y64, temperature, mask), x64)
    y_slope = slow_losses.gradient(lambda at: slow_losses.nt_xent(x64, at, temperature, mask), y64)
    np.testing.assert_allclose(x.grad, x_slope, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(y.grad, y_slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [2, 17, 64])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_without_mask_it_equals_lightly(count: int, temperature: float) -> None:
    ours = rows(count, 32, 1, torch.float32), rows(count, 32, 2, torch.float32)
    theirs = rows(count, 32, 1, torch.float32), rows(count, 32, 2, torch.float32)
    loss, _ = nt_xent(*ours, temperature)
    reference = NTXentLoss(temperature=temperature)(*theirs)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=1e-6)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


def test_two_orthogonal_pairs_on_paper() -> None:
    # Each row: one positive of cosine 1 and two negatives of cosine 0.
    eye = torch.eye(2)
    loss, scalars = no_head(temperature=0.5)(DescribedPairs(eye, eye))
    assert loss.item() == pytest.approx(math.log1p(2 * math.exp(-2)), rel=1e-6)
    assert scalars["positive_cosine"].item() == pytest.approx(1.0)
    assert scalars["masked"].item() == 0.0


def test_a_repeated_photo_as_a_negative_costs_log_three_and_its_mask_nothing() -> None:
    # Two pairs of one and the same photo: without positions each row has two perfect negatives.
    same = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    without, _ = no_head()(DescribedPairs(same, same))
    here = positions([0.0, 20.0])
    masked, scalars = no_head()(DescribedPairs(same, same, x_positions=here, y_positions=here))
    assert without.item() == pytest.approx(math.log(3), rel=1e-6)
    assert masked.item() == 0.0
    assert scalars["masked"].item() == 2.0


def test_masking_a_pair_equals_leaving_it_out_of_the_rows() -> None:
    # Pairs 0 and 1 are 10 m apart, pair 2 far: the rows of pair 2 still see all, those of 0 see only 2's and their own.
    x, y = rows(3, 6, 1), rows(3, 6, 2)
    where = positions([0.0, 10.0, 500.0])
    loss, scalars = no_head(0.1)(DescribedPairs(x, y, x_positions=where, y_positions=where))

    def row_losses(keep: list[int]) -> torch.Tensor:
        z = torch.nn.functional.normalize(torch.cat([x[keep], y[keep]]), dim=1)
        logits = (z @ z.T / 0.1).fill_diagonal_(-math.inf)
        labels = torch.arange(2 * len(keep)).roll(len(keep))
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    by_hand = row_losses([0, 2])[[0, 2]].sum() + row_losses([1, 2])[[0, 2]].sum() + row_losses([0, 1, 2])[[2, 5]].sum()
    assert loss.item() == pytest.approx(by_hand.item() / 6, rel=1e-12)
    assert scalars["masked"].item() == pytest.approx(2 * 4 / 6)


def test_places_beyond_the_radius_are_not_masked() -> None:
    x, y = rows(4, 6, 1), rows(4, 6, 2)
    where = spread_out(4, apart_m=25.5)
    plain, _ = no_head()(DescribedPairs(x, y))
    placed, _ = no_head()(DescribedPairs(x, y, x_positions=where, y_positions=where))
    assert placed.item() == plain.item()


def test_half_precision_descriptors_get_a_full_precision_loss() -> None:
    # Its net gives the views as they are.
    model = PairModel(torch.nn.Identity(), Simclr(8, SimclrSettings(head_width=16)))
    x, y = rows(4, 8, 1, torch.bfloat16), rows(4, 8, 2, torch.bfloat16)
    apart = spread_out(4)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, _ = model(PairViews(x, y, None, apart, apart))
    exact, _ = model.objective(DescribedPairs(x.float(), y.float(), x_positions=apart, y_positions=apart))
    assert loss.dtype == torch.float32
    assert loss.item() == exact.item()


def test_one_pair_is_refused() -> None:
    with pytest.raises(ObjectiveError, match=r"at least 2 pairs .* given 1\. Raise the batch size"):
        no_head().check_batch_size(1)
