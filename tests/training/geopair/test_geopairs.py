import time

import numpy as np
import pytest

from tests.training.geopair.tables import geopairs, plane_table, random_units, town
from training.geopair import EpochBatches, GeoPairError
from training.recipe_settings import GeoPairSettings

CHOICES = [
    ("nearest", "none"),
    ("random", "random"),
    ("random", "partial"),
    ("farthest", "partial"),
    ("nearest", "full"),
]


def choice(positive: str, mining: str) -> GeoPairSettings:
    return GeoPairSettings(positive=positive, negative_mining=mining, negative_sample=60)


def same(one: EpochBatches, other: EpochBatches) -> bool:
    first, second = one.to_arrays(), other.to_arrays()
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("positive", "mining"), CHOICES)
def test_a_plan_depends_on_seed_epoch_and_descriptors_alone(positive: str, mining: str) -> None:
    table, units = town(0), random_units(240)

    def composed(seed: int, epoch: int) -> EpochBatches:
        pairs = geopairs(table, choice(positive, mining), seed=seed, queries_per_epoch=100)
        return pairs.compose_epoch(epoch, lambda rows: units[rows])

    assert same(composed(4, 7), composed(4, 7))
    assert not same(composed(4, 7), composed(4, 8))
    assert not same(composed(4, 7), composed(5, 7))


@pytest.mark.parametrize(("positive", "mining"), CHOICES)
def test_plans_survive_a_checkpoint(positive: str, mining: str) -> None:
    units = random_units(240)
    composed = geopairs(town(1), choice(positive, mining)).compose_epoch(2, lambda rows: units[rows])
    again = EpochBatches.from_arrays(composed.to_arrays())
    assert same(composed, again)
    assert (again.epoch, again.dropped, len(again.batches)) == (2, composed.dropped, len(composed.batches))
    for batch, read in zip(composed.batches, again.batches, strict=True):
        assert batch.queries.tolist() == read.queries.tolist()
        assert (batch.negatives is None) == (read.negatives is None)
        assert {array.dtype for array in (read.queries, read.positives)} == {np.dtype(np.int64)}
        if batch.negatives is not None and read.negatives is not None:
            assert batch.negatives.tolist() == read.negatives.tolist()


def test_full_mining_goes_on_from_its_state() -> None:
    table, units, settings = town(0), random_units(240), choice("random", "full")
    through = geopairs(table, settings)
    epochs = [through.compose_epoch(epoch, lambda rows: units[rows]) for epoch in range(2)]
    first = geopairs(table, settings)
    first.compose_epoch(0, lambda rows: units[rows])
    second = geopairs(table, settings)
    second.load_state_dict(first.state_dict())
    assert same(second.compose_epoch(1, lambda rows: units[rows]), epochs[1])
    assert geopairs(table, choice("nearest", "partial")).state_dict() == {}


def test_a_state_taken_before_a_plan_is_not_changed_by_it() -> None:
    pairs, units = geopairs(town(0), choice("random", "full")), random_units(240)
    before = pairs.state_dict()
    pairs.compose_epoch(0, lambda rows: units[rows])
    assert len(before["hardest_queries"]) == 0
    assert len(pairs.state_dict()["hardest_queries"]) > 0


def test_queries_are_sampled_without_repetition() -> None:
    table = town(0, photos=2000, side_m=3000)
    pairs = geopairs(table, GeoPairSettings(positive="random"), queries_per_epoch=100)
    seen = []
    for epoch in range(3):
        composed = pairs.compose_epoch(epoch)
        queries = np.concatenate([batch.queries for batch in composed.batches])
        assert len(np.unique(queries)) == len(queries) == 100 - composed.dropped
        assert np.isin(queries, pairs.trainable_queries).all()
        seen.append(set(queries.tolist()))
    assert len(seen[0] | seen[1] | seen[2]) > 250


def test_an_epoch_never_exceeds_the_trainable_queries() -> None:
    pairs = geopairs(town(0), GeoPairSettings(positive="random"), queries_per_epoch=10_000)
    composed = pairs.compose_epoch(0)
    assert sum(len(batch.queries) for batch in composed.batches) + composed.dropped == len(pairs.trainable_queries)


@pytest.mark.parametrize(
    ("positive", "mining", "needed"),
    [("random", "none", False), ("random", "random", False), ("random", "full", True), ("nearest", "none", True)],
)
def test_descriptors_are_asked_for_only_where_needed(positive: str, mining: str, needed: bool) -> None:
    pairs = geopairs(town(0), choice(positive, mining))
    assert pairs.needs_descriptors is needed
    if needed:
        with pytest.raises(ValueError, match="describe is None"):
            pairs.compose_epoch(0)
    else:
        pairs.compose_epoch(0)


def test_positives_change_with_the_net() -> None:
    pairs = geopairs(town(0), GeoPairSettings(positive="nearest"))
    before, after = random_units(240, seed=0), random_units(240, seed=1)
    one = pairs.compose_epoch(0, lambda rows: before[rows])
    other = pairs.compose_epoch(0, lambda rows: after[rows])
    assert not same(one, other)


def test_mining_ten_thousand_queries_takes_seconds() -> None:
    table = town(0, photos=12_000, side_m=6000)
    units = random_units(len(table), 1024)
    settings = GeoPairSettings(positive="random", negative_mining="partial")
    pairs = geopairs(table, settings, queries_per_batch=32, separate_negatives=True)
    started = time.process_time()
    composed = pairs.compose_epoch(0, lambda rows: units[rows])
    assert time.process_time() - started < 15
    assert sum(len(batch.queries) for batch in composed.batches) > 9_000


def refused(table, code: str, changes: dict | None = None, **settings) -> str:
    with pytest.raises(GeoPairError) as error:
        geopairs(table, GeoPairSettings(**settings), **(changes or {}))
    assert error.value.code == code
    return str(error.value)


def test_no_pairs_says_the_nearest_distance_and_the_remedy() -> None:
    assert refused(plane_table([[0, 0], [14.23, 0], [100, 0]]), "no_pairs") == (
        "of 3 references no two lie within 10 m of each other; the nearest two that could be a pair are 14.23 m apart. "
        "Raise geopair.positive_radius_m to at least 14.3."
    )
    far = refused(plane_table([[0, 0], [60, 0]]), "no_pairs")
    assert far.endswith("Raise geopair.positive_radius_m to at least 60 (and geopair.never_negative_radius_m).")


def test_no_pairs_counts_only_those_that_could_be_one() -> None:
    table = plane_table([[0, 0], [3, 0], [18, 0], [40, 0]], [0, 90, 10, np.nan], [0, 0, 1, 1])
    text = refused(table, "no_pairs", heading_window_deg=30.0, other_session_only=True)
    assert text == (
        "of 4 references no two lie within 10 m of each other and look the same way within 30° (1 have no heading, "
        "which never matches) and are of different sessions; the nearest two that could be a pair are 18.00 m apart. "
        "Raise geopair.positive_radius_m to at least 18, or widen geopair.heading_window_deg or leave it out, or set "
        "geopair.same_session_fallback=true."
    )


def test_no_pairs_looks_beyond_the_nearest_photos() -> None:
    # Forty photos of one session lie in between: the nearest of another is none's nearest neighbour.
    table = plane_table([[0.1 * at, 0] for at in range(40)] + [[30, 0]], sessions=[0] * 40 + [1])
    text = refused(table, "no_pairs", other_session_only=True)
    assert "are 26.10 m apart" in text


def test_unknown_headings_alone_make_no_pair() -> None:
    text = refused(plane_table(np.zeros((3, 2))), "no_pairs", heading_window_deg=45.0)
    assert "3 have no heading" in text
    assert "Widen geopair.heading_window_deg or leave it out" in text


@pytest.mark.parametrize(("session", "said"), [(3, "are of one session"), (-1, "have no session")])
def test_one_session_cannot_pair_with_another(session: int, said: str) -> None:
    table = plane_table([[0, 0], [1, 0]], sessions=[session] * 2)
    text = refused(table, "one_session", other_session_only=True)
    assert said in text
    assert "geopair.other_session_only=false or geopair.same_session_fallback=true" in text
    assert len(geopairs(table, GeoPairSettings(other_session_only=True, same_session_fallback=True)).trainable_queries)


@pytest.mark.parametrize("count", [0, 1])
def test_one_photo_makes_no_pair(count: int) -> None:
    assert "can make no pair" in refused(plane_table(np.zeros((count, 2))), "too_few_references")


def test_a_batch_must_hold_what_the_objective_compares() -> None:
    text = refused(town(0), "batch_too_small", {"queries_per_batch": 1})
    assert "room for 1 queries, but the objective compares at least 2" in text


def test_descriptors_must_be_finite_and_as_many_as_asked() -> None:
    pairs = geopairs(town(0), GeoPairSettings(positive="nearest"))
    with pytest.raises(GeoPairError, match="not finite"):
        pairs.compose_epoch(0, lambda rows: np.full((len(rows), 4), np.nan, np.float32))
    with pytest.raises(ValueError, match="describe gave"):
        pairs.compose_epoch(0, lambda rows: np.zeros((1, 4), np.float32))
