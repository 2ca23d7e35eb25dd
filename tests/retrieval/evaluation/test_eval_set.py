"""What is right by positions, chance, samples, and what identifies an evaluation set."""

from dataclasses import replace

import numpy as np
import pytest

from retrieval.errors import ParameterError
from retrieval.evaluation.eval_set import EvalSet, Truth, overlap
from tests.training.comparison.places_in_a_row import PROTOCOL, at, eval_set, truth


def test_positives_by_hand() -> None:
    """Queries at 5, 18 and 500 m; the last has no true match at all, the second none within 10 m."""
    found = truth([0.0, 40.0, 100.0, 200.0], [5.0, 18.0, 500.0])
    assert found.positives.tolist() == [[1, 2, 0], [1, 0, 0]]
    assert found.counted.tolist() == [[True, True, False], [True, False, False]]
    assert found.places(1) == 1


def test_chance_by_hand() -> None:
    """Of four photos one is right for the first query and two for the second: (1/4 + 2/4) / 2."""
    found = truth([0.0, 40.0, 100.0, 200.0], [5.0, 18.0, 500.0])
    assert found.chance(0, (1,)) == pytest.approx([0.375])
    assert found.chance(1, (1, 5)) == pytest.approx([0.25, 1.0])


def test_a_sample_is_even_and_counts() -> None:
    found = truth([0.0], [float(m) for m in range(12)] + [900.0])
    assert found.sample(20).tolist() == list(range(12))
    assert found.sample(3).tolist() == [0, 6, 11]


def test_nearest_takes_the_first_of_equals() -> None:
    assert truth([50.0, 0.0, 50.0], [1.0, 49.0]).nearest(np.array([0, 1])).tolist() == [1, 0]


def test_without_a_solvable_query() -> None:
    with pytest.raises(ParameterError, match=r"none of the 2 queries has a database photo within 10 m") as error:
        truth([0.0], [20.0, 22.0])
    assert "evaluation set east" in str(error.value)


def test_an_empty_set() -> None:
    with pytest.raises(ParameterError, match=r"0 queries and 1 database photo:"):
        Truth.of(eval_set([0.0], []), PROTOCOL)


def test_sessions_of_the_queries() -> None:
    queries = (at(0.0, "a", "monday"), at(1.0, "b", "tuesday"), at(2.0, "c", None))
    assert Truth.of(EvalSet("x", (at(0.0),), queries), PROTOCOL).sessions == 2


def test_identity_knows_ids_positions_sides_and_order() -> None:
    photos = eval_set([0.0, 30.0], [5.0])
    first, second = photos.database
    others = [
        replace(photos, database=(second, first)),
        replace(photos, database=(first,), queries=(second, *photos.queries)),
        replace(photos, queries=(at(5.0, "other"),)),
        replace(photos, queries=(at(5.1, "q5"),)),
    ]
    assert len({photos.identity(), *(other.identity() for other in others)}) == 5
    assert replace(photos, name="new name").identity() == photos.identity()


def test_overlap_with_training() -> None:
    photos = eval_set([0.0], [0.0, 100.0])
    assert overlap([at(20.0), at(50.0), at(124.0)], photos) == 2
    assert overlap([at(1000.0)], photos) == 0
    in_a_plane = replace(at(0.0), position=None, plane_m=(0.0, 0.0))
    assert overlap([in_a_plane], photos) is None
