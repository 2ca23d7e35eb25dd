import numpy as np
import pytest

from index_builder.index_design import build_candidates, parameters_for
from index_builder.quality import Queries, hold_out, hold_out_twice, measure_vectors, tune
from retrieval.index.vectors.candidates import INDEX_TYPES, StoredVectors
from retrieval.index.vectors.exact import ExactVectors

DIM = 24


def spread(rows: int, seed: int = 0) -> np.ndarray:
    """Without any clusters: the hardest there is."""
    out = np.random.default_rng(seed).normal(size=(rows, DIM)).astype(np.float32)
    return out / np.linalg.norm(out, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def exact() -> ExactVectors:
    return ExactVectors.from_descriptors([spread(4000)], DIM, "fp16")


def test_no_query_finds_itself(exact: ExactVectors) -> None:
    held_out = hold_out(exact, 50)
    every = exact.descriptors(np.arange(4000))
    scores = held_out.descriptors @ every.T
    scores[np.arange(50), held_out.rows] = -2.0
    np.testing.assert_allclose(held_out.best, -np.sort(-scores, axis=1)[:, :10], atol=1e-5)


def test_exact_search_has_all_of_it(exact: ExactVectors) -> None:
    report = measure_vectors(StoredVectors(exact), hold_out(exact, 50))
    assert (report.at_1, report.at_10, report.queries) == (1.0, 1.0, 50)


class _Loses(StoredVectors):
    """Returns all but the best row, or all but the last ones."""

    def __init__(self, exact: ExactVectors, first: bool) -> None:
        super().__init__(exact)
        self._first = first

    def search(self, queries, k, *, effort=None):  # type: ignore[no-untyped-def]
        rows, scores = self.exact.search(queries, k + 1)
        if self._first:  # the query itself stands first, the best other row second
            keep = np.r_[0, 2 : k + 1]
            return rows[:, keep], scores[:, keep]
        rows[:, 6:] = -1
        return rows[:, :k], scores[:, :k]


@pytest.mark.parametrize(("first", "at_1", "at_10"), [(True, 0.0, 0.9), (False, 1.0, 0.5)])
def test_what_is_not_returned_counts(exact: ExactVectors, first: bool, at_1: float, at_10: float) -> None:
    report = measure_vectors(_Loses(exact, first), hold_out(exact, 40))
    assert (report.at_1, report.at_10) == (at_1, pytest.approx(at_10))


def test_copies_of_a_photo_may_stand_for_each_other() -> None:
    rows = np.repeat(spread(40), 12, axis=0)
    exact = ExactVectors.from_descriptors([rows], DIM, "fp32")
    held_out = hold_out(exact, 30)
    swapped = StoredVectors(ExactVectors.from_descriptors([rows], DIM, "fp32"))
    assert measure_vectors(swapped, held_out).at_10 == 1.0


@pytest.mark.parametrize("type_", [name for name in INDEX_TYPES if name != "exact"])
def test_tuning_reaches_the_target_with_little(exact: ExactVectors, type_: str) -> None:
    vectors = StoredVectors(exact, build_candidates(exact, parameters_for(type_, exact.count, DIM)))
    held_out = hold_out(exact, 100)
    modest, modest_report = tune(vectors, held_out, 0.6)
    strict, strict_report = tune(vectors, held_out, 0.9)
    assert modest_report.at_10 >= 0.6
    assert strict_report.at_10 >= 0.9
    assert (modest.effort, modest.rerank) <= (strict.effort, strict.rerank)
    assert modest.effort < (modest.lists or 2048)
    assert modest_report.wanted == 0.6
    again = measure_vectors(StoredVectors(exact, vectors.candidates.with_parameters(strict)), held_out)  # type: ignore[union-attr]
    assert again.at_10 == pytest.approx(strict_report.at_10)


def test_queries_to_tune_with_and_to_report_are_different_ones(exact: ExactVectors) -> None:
    ours, theirs = hold_out_twice(exact, 50)
    assert (len(ours.rows), len(theirs.rows), len(np.intersect1d(ours.rows, theirs.rows))) == (50, 50, 0)
    few = ExactVectors.from_descriptors([spread(3)], DIM, "fp16")
    ours, theirs = hold_out_twice(few)
    assert sorted([*ours.rows, *theirs.rows]) == [0, 1, 2]
    assert measure_vectors(StoredVectors(few), theirs).at_10 == 1.0


def test_the_recall_reported_is_that_of_queries_which_tuning_did_not_see() -> None:
    """Half of the rows stand apart in pairs and are found in one list; for the others many must be looked at."""
    easy = np.repeat(spread(1000, seed=5), 12, axis=0)
    rows = np.concatenate([easy, spread(12_000)])
    exact = ExactVectors.from_descriptors([rows], DIM, "fp16")
    vectors = StoredVectors(exact, build_candidates(exact, parameters_for("ivf", exact.count, DIM)))
    every = hold_out(exact, 600)
    some, others = (
        Queries(every.descriptors[which], every.best[which], every.rows[which])
        for which in (every.rows < len(easy), every.rows >= len(easy))
    )
    alone, flattering = tune(vectors, some, 0.9)
    both, report = tune(vectors, some, 0.9, others)
    assert both.effort > alone.effort
    assert vectors.candidates is not None
    confirmed = measure_vectors(StoredVectors(exact, vectors.candidates.with_parameters(both)), others)
    assert report.at_10 == pytest.approx(confirmed.at_10)
    assert report.at_10 >= 0.9
    assert report.queries == len(others.rows) != flattering.queries
