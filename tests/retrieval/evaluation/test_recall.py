from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest

from retrieval.evaluation import chance_at, first_hits, hits_at
from retrieval.evaluation.positions import true_ground
from tests.retrieval.evaluation.plane import plane


def test_first_hit_by_hand() -> None:
    """Database at 0, 100, 200 m; three queries at 0, 100, 500 m."""
    ground = true_ground(
        plane([[0.0, 0.0], [100.0, 0.0], [500.0, 0.0]]),
        plane([[0.0, 0.0], [100.0, 0.0], [200.0, 0.0]]),
    )
    rows = np.array([[2, 0, -1], [1, 0, 2], [0, 1, 2]])
    ranks = first_hits(ground, rows, 25.0)
    assert ranks.tolist() == [1, 0, 3]
    assert hits_at(ranks, [1, 2, 3, 10], 3).tolist() == [
        [False, True, True, True],
        [True, True, True, True],
        [False, False, False, False],
    ]


def test_padding_is_never_a_hit() -> None:
    """-1 would be the last database row if taken as an index, and that row is right here."""
    ground = true_ground(plane([[0.0, 0.0]]), plane([[900.0, 0.0], [0.0, 0.0]]))
    assert first_hits(ground, np.array([[0, -1, -1]]), 25.0).tolist() == [3]


def test_first_hits_over_many_blocks() -> None:
    count = 70_000
    ground = true_ground(
        plane(np.stack([np.arange(count) % 2 * 100.0, np.zeros(count)], axis=1)),
        plane([[0.0, 0.0], [100.0, 0.0]]),
    )
    ranks = first_hits(ground, np.tile([0, 1], (count, 1)), 25.0)
    assert (ranks == np.arange(count) % 2).all()


@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_chance_is_the_hypergeometric(size: int) -> None:
    cutoffs = [1, 2, 3, 5, 10, 30]
    positives = np.arange(size + 1)
    found = chance_at(positives, size, cutoffs)
    for p in positives:
        for column, n in enumerate(cutoffs):
            drawn = min(n, size)
            exact = 1 - Fraction(comb(size - int(p), drawn), comb(size, drawn))
            assert found[p, column] == pytest.approx(float(exact), rel=1e-12, abs=1e-300)


def test_chance_by_counting_every_draw() -> None:
    """5 images, 2 right, 2 drawn: 7 of the 10 draws hold a right one."""
    draws = list(combinations(range(5), 2))
    share = sum(bool(set(draw) & {0, 1}) for draw in draws) / len(draws)
    assert share == 0.7
    assert chance_at(np.array([2]), 5, [2])[0, 0] == pytest.approx(share)


def test_small_chances_keep_their_digits() -> None:
    assert chance_at(np.array([1]), 10**9, [20])[0, 0] == pytest.approx(20 / 10**9, rel=1e-9)


def test_chance_is_what_random_rankings_reach() -> None:
    random = np.random.default_rng(0)
    size, positives, tries = 40, 3, 4000
    ground = true_ground(
        plane(np.zeros((tries, 2))),
        plane(np.where(np.arange(size) < positives, 0.0, 100.0)[:, None] * [1.0, 0.0]),
    )
    rows = random.permuted(np.tile(np.arange(size), (tries, 1)), axis=1)
    reached = hits_at(first_hits(ground, rows, 25.0), [1, 5, 20], size).mean(axis=0)
    np.testing.assert_allclose(reached, chance_at(np.array([positives]), size, [1, 5, 20])[0], atol=0.03)
