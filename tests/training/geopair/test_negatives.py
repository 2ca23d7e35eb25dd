import itertools

import numpy as np
import pytest

from tests.training.geopair.tables import distances_m, geopairs, photos_of, plane_table, random_units, town
from training.geopair import GeoPairError, negatives
from training.geopair.negatives import LastHardest, random_ranking
from training.recipe_settings import GeoPairSettings


def mining(kind: str, **more) -> GeoPairSettings:
    return GeoPairSettings(positive="random", negative_mining=kind, **more)


@pytest.mark.parametrize(
    ("kind", "each", "separate"), [*itertools.product(("random", "partial", "full"), (1, 3), (0, 1))]
)
@pytest.mark.parametrize("seed", range(3))
def test_negatives_keep_to_their_rules(kind: str, each: int, separate: int, seed: int) -> None:
    table = town(seed, photos=400, side_m=700)
    units, distances = random_units(len(table)), distances_m(table)
    settings = mining(kind, negatives_per_query=each, negative_sample=100)
    pairs = geopairs(table, settings, seed=seed, queries_per_batch=6, separate_negatives=bool(separate))
    for epoch in range(2):
        composed = pairs.compose_epoch(epoch, lambda rows: units[rows])
        for batch in composed.batches:
            assert batch.negatives is not None
            assert batch.negatives.shape == (len(batch.queries), each)
            rows = photos_of(batch)
            assert len(np.unique(rows)) == len(rows)
            assert (distances[batch.queries[:, None], batch.negatives] > 25).all()
            assert (distances[batch.positives[:, None], batch.negatives] > 25).all()
            if separate:
                mined = batch.negatives.ravel()
                others = distances[np.ix_(mined, rows)]
                others[np.arange(len(mined)), 2 * len(batch.queries) + np.arange(len(mined))] = np.inf
                assert (others > 25).all()


def far_places(count: int = 40):
    """Places 100 m apart, two photos at each: photo 2i and 2i + 1."""
    return plane_table([[100 * place + step, 0] for place in range(count) for step in (0, 2)])


@pytest.mark.parametrize("kind", ["partial", "full"])
def test_the_hardest_is_that_of_brute_force(kind: str) -> None:
    table, units = far_places(), random_units(80)
    pairs = geopairs(table, mining(kind, negatives_per_query=3), queries_per_batch=1, min_queries=1)
    cosines = units @ units.T
    composed = pairs.compose_epoch(0, lambda rows: units[rows])
    assert (len(composed.batches), composed.dropped) == (80, 0)
    for batch in composed.batches:
        query = int(batch.queries[0])
        allowed = [row for row in range(80) if row // 2 != query // 2]
        expected = sorted(allowed, key=lambda row, query=query: -cosines[query, row])[:3]
        assert batch.negatives is not None
        assert batch.negatives[0].tolist() == expected


def test_only_the_sample_is_mined_and_described() -> None:
    table, units = far_places(), random_units(80)
    asked = []

    def describe(rows):
        asked.append(rows)
        return units[rows]

    pairs = geopairs(table, mining("partial", negative_sample=12), queries_per_batch=3, queries_per_epoch=9)
    composed = pairs.compose_epoch(0, describe)
    queries = np.concatenate([batch.queries for batch in composed.batches])
    mined = np.concatenate([batch.negatives.ravel() for batch in composed.batches if batch.negatives is not None])
    (rows,) = asked
    assert (np.diff(rows) > 0).all()
    assert set(queries) | set(mined) <= set(rows)
    assert len(rows) <= 9 + 12
    assert len(np.unique(mined)) <= 12
    pairs.compose_epoch(1, describe)
    assert set(asked[1]) != set(rows)


def test_a_taken_negative_sends_the_next_query_down_its_ranking() -> None:
    # All descriptors nearly agree with photo 8's: the hardest of every query is the photo that only one may have.
    units = np.eye(12, dtype=np.float32) + 0.01
    units[:, 8] += 1
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    pairs = geopairs(far_places(6), mining("partial"), queries_per_batch=3)
    for batch in pairs.compose_epoch(0, lambda rows: units[rows]).batches:
        assert batch.negatives is not None
        assert len(np.unique(batch.negatives)) == len(batch.queries)


def test_random_negatives_are_uniform_and_need_no_descriptors() -> None:
    table = far_places(10)
    pairs = geopairs(table, mining("random"), queries_per_batch=1, min_queries=1)
    assert not pairs.needs_descriptors
    drawn = np.zeros((20, 20))
    for epoch in range(300):
        for batch in pairs.compose_epoch(epoch).batches:
            assert batch.negatives is not None
            drawn[batch.queries[0], batch.negatives[0, 0]] += 1
    shares = drawn.sum(axis=0) / drawn.sum()
    assert shares == pytest.approx(np.full(20, 0.05), abs=0.015)
    assert drawn[4, [4, 5]].sum() == 0


def test_random_rankings_have_no_photo_twice() -> None:
    (ranking,) = random_ranking(50, 1000, np.random.default_rng)(np.array([3]))
    assert sorted(ranking) == list(range(50))


def test_a_query_without_room_for_negatives_is_dropped() -> None:
    # Two places 30 m apart: each may be the other's negative, but beside both pairs there is no third place.
    table = plane_table([[0, 0], [2, 0], [40, 0], [42, 0]])
    pairs = geopairs(table, mining("random"), queries_per_batch=2, min_queries=1, separate_negatives=True)
    composed = pairs.compose_epoch(0)
    assert [len(batch.queries) for batch in composed.batches] == [1, 1, 1, 1]
    with pytest.raises(GeoPairError, match=r"of 4 pairs no more than 1, each with 1 mined negative, fit"):
        geopairs(table, mining("random"), queries_per_batch=2, separate_negatives=True).compose_epoch(0)


def test_an_area_without_negatives_says_so() -> None:
    table = plane_table([[0, 0], [2, 0], [20, 0], [22, 0]])
    pairs = geopairs(table, mining("partial"), queries_per_batch=1, min_queries=1)
    with pytest.raises(
        GeoPairError, match=r"none of 4 queries finds 1 mined negative outside 25 m .*too small"
    ) as error:
        pairs.compose_epoch(0, lambda rows: random_units(4)[rows])
    assert error.value.code == "no_negatives"


def test_full_mining_remembers_its_hardest() -> None:
    table, units = far_places(), random_units(80)
    settings = mining("full", negative_sample=5)
    pairs = geopairs(table, settings, queries_per_batch=1, min_queries=1)
    cosines = units @ units.T
    hardness = []
    for epoch in range(6):
        composed = pairs.compose_epoch(epoch, lambda rows: units[rows])
        found = {int(batch.queries[0]): int(batch.negatives[0, 0]) for batch in composed.batches}  # type: ignore[index]
        hardness.append([cosines[query, found[query]] for query in range(80)])
    # What was hardest is tried again, so with the same descriptors negatives only get harder.
    assert (np.diff(hardness, axis=0) >= 0).all()
    assert np.mean(hardness[-1]) > np.mean(hardness[0]) + 0.1


def test_last_hardest_on_paper() -> None:
    hardest = LastHardest(np.array([2, 5]), np.array([[20], [50]]))
    newer = hardest.updated(np.array([7, 5]), np.array([[70], [51]]))
    assert [newer.of(query).tolist() for query in (2, 5, 7, 3, 9)] == [[20], [51], [70], [], []]
    assert hardest.of(5).tolist() == [50]


def test_a_truncated_ranking_is_the_head_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = np.round(random_units(30, 40), 1)
    whole = negatives._descending(scores)
    monkeypatch.setattr(negatives, "RANKED_AT_MOST", 39)
    head = negatives._descending(scores)
    assert (np.take_along_axis(scores, head, 1) == np.take_along_axis(scores, whole, 1)[:, :39]).all()
