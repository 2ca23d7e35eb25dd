import numpy as np
import pytest

from tests.training.geopair.tables import distances_m, geopairs, photos_of, plane_table, positives_by_hand, town
from training.geopair import GeoPairError
from training.recipe_settings import GeoPairSettings


def places(*east_m: float, gap_m: float = 3.0):
    """Two photos `gap_m` apart at each place."""
    return plane_table([[at + step, 0] for at in east_m for step in (0, gap_m)])


@pytest.mark.parametrize("separation_m", [None, 12.0, 60.0])
@pytest.mark.parametrize("seed", range(6))
def test_no_two_pairs_of_a_batch_show_the_same_place(seed: int, separation_m: float | None) -> None:
    table = town(seed)
    settings = GeoPairSettings(positive="random", batch_separation_m=separation_m)
    apart = 25.0 if separation_m is None else separation_m
    distances, by_hand = distances_m(table), positives_by_hand(table, settings)
    pairs = geopairs(table, settings, seed=seed)
    composed = pairs.compose_epoch(3)
    queries = np.concatenate([batch.queries for batch in composed.batches])
    assert len(np.unique(queries)) == len(queries)
    assert len(queries) + composed.dropped == len(pairs.trainable_queries)
    for batch in composed.batches:
        assert batch.negatives is None
        assert 4 <= len(batch.queries) <= 8
        assert all(p in by_hand[q] for q, p in zip(batch.queries.tolist(), batch.positives.tolist(), strict=True))
        rows, owner = photos_of(batch), np.tile(np.arange(len(batch.queries)), 2)
        assert len(np.unique(rows)) == len(rows)
        assert (distances[np.ix_(rows, rows)][owner[:, None] != owner] > apart).all()


def test_most_pairs_of_a_wide_town_find_a_batch() -> None:
    pairs = geopairs(town(0, photos=800, side_m=1500), GeoPairSettings(positive="random"), queries_per_batch=16)
    composed = pairs.compose_epoch(0)
    assert composed.dropped <= 0.05 * len(pairs.trainable_queries)


def test_pairs_just_far_enough_apart_share_a_batch() -> None:
    settings = GeoPairSettings(positive="random", batch_separation_m=20.0)
    # From the second photo of one place to the first of the next: 20 m, the border, and 20.001 m.
    with pytest.raises(GeoPairError):
        geopairs(places(0, 23), settings, queries_per_batch=2).compose_epoch(0)
    composed = geopairs(places(0, 23.001), settings, queries_per_batch=2).compose_epoch(0)
    assert [sorted(batch.queries // 2) for batch in composed.batches] == [[0, 1], [0, 1]]


def test_a_pair_that_does_not_fit_waits_for_a_later_batch() -> None:
    # Four places at which each of two photos is a query: two batches of four, whatever the order.
    composed = geopairs(
        places(0, 100, 200, 300), GeoPairSettings(positive="random"), queries_per_batch=4
    ).compose_epoch(0)
    assert [sorted(batch.queries // 2) for batch in composed.batches] == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert composed.dropped == 0


def test_a_short_batch_holds_half_or_is_given_up() -> None:
    three = places(0, 100, 200)
    random = GeoPairSettings(positive="random")
    kept = geopairs(three, random, queries_per_batch=6).compose_epoch(0)
    assert [len(batch.queries) for batch in kept.batches] == [3, 3]
    with pytest.raises(GeoPairError, match=r"no more than 3 fit into one batch.*needs 4"):
        geopairs(three, random, queries_per_batch=7).compose_epoch(0)
    with pytest.raises(GeoPairError, match="needs 4"):
        geopairs(three, random, queries_per_batch=4, min_queries=4).compose_epoch(0)
    with pytest.raises(GeoPairError, match="needs 6"):
        geopairs(three, random, queries_per_batch=6, equal_batches=True).compose_epoch(0)


def test_equal_batches_are_full_ones() -> None:
    composed = geopairs(town(1), GeoPairSettings(positive="random"), equal_batches=True).compose_epoch(0)
    assert {len(batch.queries) for batch in composed.batches} == {8}
    assert composed.dropped > 0


def test_no_batch_says_how_many_fit_and_what_to_change() -> None:
    with pytest.raises(GeoPairError) as error:
        geopairs(places(0, 100, 200), GeoPairSettings(positive="random"), queries_per_batch=32).compose_epoch(0)
    assert error.value.code == "no_batches"
    assert str(error.value) == (
        "of 6 pairs no more than 3 fit into one batch, further than 25 m apart; a batch needs 16. Set training.pairs "
        "to at most 3, or geopair.batch_separation_m below 25, or add photos of other places."
    )
    with pytest.raises(GeoPairError) as error:
        geopairs(places(0), GeoPairSettings(positive="random"), queries_per_batch=2).compose_epoch(0)
    assert "training.pairs" not in str(error.value)
