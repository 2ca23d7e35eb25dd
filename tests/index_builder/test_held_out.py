from dataclasses import replace

import numpy as np
import pytest

from index_builder.calibration import queries as held_out
from index_builder.calibration.queries import DescribedIndex, Occasions, coverage_of, occasions_of, search_held_out
from retrieval.geo import haversine_m
from tests.index_builder.made_up_street import MADE_UP_BUNDLE, made_up_street


def slow_search(index, label, query, k, away_m):
    """One query, row by row."""
    every = np.arange(index.count)
    apart = haversine_m(index.lat[query], index.lon[query], index.lat, index.lon)
    allowed = (label != label[query]) & (label >= 0) & (apart > (-1.0 if away_m is None else away_m))
    descriptors = index.descriptors(every).astype(np.float64)
    own = descriptors[query]
    scores = np.where(allowed, descriptors @ own, -np.inf)
    rows = np.argsort(-scores, kind="stable")[:k]
    centre = descriptors[allowed].mean(axis=0)
    around = [
        (own - centre) @ (descriptors[row] - centre)
        / np.linalg.norm(own - centre)
        / np.linalg.norm(descriptors[row] - centre)
        for row in rows
    ]  # fmt: skip
    return rows, scores[rows], around, allowed.sum()


@pytest.mark.parametrize("away_m", [None, 200.0])
@pytest.mark.parametrize("block", [8192, 37])
def test_search_agrees_with_one_row_at_a_time(
    monkeypatch: pytest.MonkeyPatch, away_m: float | None, block: int
) -> None:
    monkeypatch.setattr(held_out, "_BLOCK", block)
    index = made_up_street(3, 40)
    label = np.repeat([0, 1, 2], 40)
    label[5:9] = -1
    queries = np.array([0, 41, 60, 100, 119])
    found = search_held_out(index, Occasions(label, "sessions"), queries, 12, away_m)
    for place, query in enumerate(queries):
        rows, scores, around, remained = slow_search(index, label, query, 12, away_m)
        np.testing.assert_array_equal(found.rows[place], rows)
        np.testing.assert_allclose(found.scores[place], scores, atol=1e-5)
        np.testing.assert_allclose(found.centred[place], around, atol=1e-4)
        assert found.remained[place] == remained


def test_fewer_than_k_remain() -> None:
    index = made_up_street(2, 5)
    found = search_held_out(index, Occasions(np.repeat([0, 1], 5), "sessions"), np.array([0, 7]), 8)
    np.testing.assert_array_equal(np.sort(found.rows[0]), [-1, -1, -1, 5, 6, 7, 8, 9])
    np.testing.assert_array_equal(found.rows[:, 5:], -1)
    assert (found.scores[:, 5:] == -np.inf).all()
    assert (found.centred[:, 5:] == -1).all()


def test_coverage_by_hand() -> None:
    index = made_up_street(3, 40)
    occasions = occasions_of(index)[0]
    queries = np.array([3, 50, 90])
    coverage = coverage_of(index, occasions, queries, 25.0)
    for place, query in enumerate(queries):
        near = haversine_m(index.lat[query], index.lon[query], index.lat, index.lon) <= 25.0
        assert coverage.all[place] == near.sum()
        assert coverage.left[place] == (near & (occasions.label != occasions.label[query])).sum()


def test_occasions_are_sessions_by_name_and_blocks_between_pauses() -> None:
    sessions, blocks = occasions_of(made_up_street(3, 20))
    assert (sessions.kind, blocks.kind) == ("sessions", "time blocks")
    np.testing.assert_array_equal(sessions.label, np.repeat([0, 1, 2], 20))
    np.testing.assert_array_equal(blocks.label, np.repeat([0, 1, 2], 20))
    unnamed, timeless = occasions_of(made_up_street(3, 20, names=False, times=False))
    assert (unnamed.label == -1).all()
    assert (timeless.label == -1).all()
    assert (unnamed.count, sessions.count) == (0, 3)


def with_backup(index: DescribedIndex, of: int, photos: int, *, named: str = "backup") -> DescribedIndex:
    """Another folder holds the same files of one session again."""
    rows = np.arange(of * photos, (of + 1) * photos)
    copies = [replace(one, id=f"copy/{one.id}", session=named) for one in index.references(rows)]
    every = index.descriptors(np.arange(index.count))
    return DescribedIndex(
        [*index.references(np.arange(index.count)), *copies], np.concatenate([every, every[rows]]), MADE_UP_BUNDLE
    )


def test_copies_in_another_folder_are_held_out_with_the_photos_that_they_are_of() -> None:
    """Neither the query's own copy nor those of its burst are another day's photos."""
    index = with_backup(made_up_street(3, 40), of=1, photos=40)
    occasions = occasions_of(index)[0]
    queries = np.array([45, 60, 130])
    found = search_held_out(index, occasions, queries, 20)
    assert not ((found.rows >= 40) & (found.rows < 80)).any()
    assert not (found.rows >= 120).any()
    np.testing.assert_array_equal(found.remained, [80, 80, 80])
    # Of other sessions the copies are references as any.
    assert search_held_out(index, occasions, np.array([3]), 20).remained.tolist() == [120]


def test_a_copy_without_a_time_is_known_by_its_descriptor() -> None:
    index = with_backup(made_up_street(2, 30, times=False), of=0, photos=30)
    found = search_held_out(index, occasions_of(index)[0], np.array([7]), 5)
    assert 67 not in found.rows
    assert found.remained.tolist() == [59]
