"""Cells, differences and intervals, by hand and against a bootstrap written out query by query."""

import numpy as np
import pytest

from retrieval.evaluation import Bootstrap
from training.comparison.report import hits_by_seed, mean_of_known, mean_with_interval, paired_difference, recall_cells


def slow_interval(values: np.ndarray, groups: np.ndarray, bootstrap: Bootstrap) -> tuple[float, float]:
    """Draw places again, put all their queries together, average; one resample after the other."""
    random = np.random.default_rng(bootstrap.seed)
    labels = np.unique(groups)
    means = []
    for _ in range(bootstrap.resamples):
        drawn = labels[random.integers(0, len(labels), len(labels))]
        means.append(np.concatenate([values[groups == label] for label in drawn]).mean())
    tail = (1 - bootstrap.level) / 2
    return tuple(np.quantile(means, [tail, 1 - tail]))


def test_hits_by_hand() -> None:
    """Two seeds, four queries of which the third does not count, three matches ranked."""
    first = np.array([[0, 1, 0, 3], [0, 0, 0, 2]])
    hits = hits_by_seed(first, np.array([True, True, False, True]), (1, 3), 3)
    assert hits.tolist() == [[[1, 1], [0, 1], [0, 0]], [[1, 1], [1, 1], [0, 1]]]


def test_cells_by_hand() -> None:
    """One place: nothing can be drawn but the place itself."""
    hits = np.array([[[1.0], [0.0], [0.0]], [[1.0], [1.0], [0.0]]])
    (cell,) = recall_cells(hits, np.zeros(3, np.int64), Bootstrap(resamples=50))
    assert cell.recall.value == pytest.approx(0.5)
    assert (cell.recall.low, cell.recall.high) == pytest.approx((0.5, 0.5))
    assert (cell.seed_min, cell.seed_max) == pytest.approx((1 / 3, 2 / 3))


def test_two_places_that_are_all_right_and_all_wrong() -> None:
    (cell,) = recall_cells(np.array([[[1.0], [0.0]]]), np.array([7, 9]), Bootstrap())
    assert (cell.recall.low, cell.recall.value, cell.recall.high) == (0.0, 0.5, 1.0)


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_are_those_of_a_bootstrap_written_out(seeds: int) -> None:
    random = np.random.default_rng(5)
    hits = random.integers(0, 2, (seeds, 40, 2)).astype(np.float64)
    groups, bootstrap = random.integers(0, 12, 40), Bootstrap(resamples=300, seed=3)
    for index, cell in enumerate(recall_cells(hits, groups, bootstrap)):
        expected = slow_interval(hits.mean(axis=0)[:, index], groups, bootstrap)
        assert (cell.recall.low, cell.recall.high) == pytest.approx(expected)
        by_seed = hits[:, :, index].mean(axis=1)
        assert cell.recall.value == pytest.approx(by_seed.mean())
        assert (cell.seed_min, cell.seed_max) == pytest.approx((by_seed.min(), by_seed.max()))
    ours, theirs = hits.mean(axis=0).T
    points = paired_difference(ours, theirs, groups, bootstrap)
    assert (points.low, points.high) == pytest.approx(slow_interval(ours - theirs, groups, bootstrap))
    assert points.value == pytest.approx(ours.mean() - theirs.mean())


def test_a_difference_that_every_query_shares_is_certain() -> None:
    """Hard and easy queries differ widely, but one row is always 0.25 above the other."""
    theirs = np.array([0.0, 0.75, 0.0, 0.75, 0.5])
    points = paired_difference(theirs + 0.25, theirs, np.arange(5), Bootstrap())
    assert (points.low, points.value, points.high) == pytest.approx((0.25, 0.25, 0.25))


def test_a_mean_leaves_out_what_is_not_known() -> None:
    values = np.array([0.2, np.nan, 0.4])
    found = mean_with_interval(values, np.array([0, 0, 0]), Bootstrap(resamples=10))
    assert found is not None
    assert found.value == pytest.approx(0.3)
    assert mean_with_interval(np.array([np.nan]), np.array([0]), Bootstrap()) is None


def test_mean_over_seeds_of_what_is_known() -> None:
    found = mean_of_known(np.array([[0.2, np.nan, np.nan], [0.4, 0.5, np.nan]]))
    assert found[:2].tolist() == pytest.approx([0.3, 0.5])
    assert np.isnan(found[2])
