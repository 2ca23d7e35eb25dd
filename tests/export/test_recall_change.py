"""Recall before and after a step, worked out by hand on places along a line."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from export.photos import recall_changes
from retrieval.errors import ParameterError
from retrieval.evaluation.eval_set import EvalSet
from retrieval.images import Preprocessing
from tests.places import make_places

SIZE = Preprocessing(height=24, width=32)


def by_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Tells every photo from every other."""
    flat = images[:, ::6, ::6].reshape(len(images), -1).astype(np.float32) - 127
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)


def blind(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Describes every photo alike, so the first of the database is always found."""
    return np.repeat(np.array([[1.0, 0.0]], np.float32), len(images), axis=0)


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> EvalSet:
    """Ten places 100 m apart; the queries are their own photos, the first eight of them."""
    rows = make_places(tmp_path_factory.mktemp("line"), 10).rows
    return EvalSet("line", tuple(rows), tuple(rows[:8]))


def test_a_blind_model_finds_the_first_place_only(line: EvalSet) -> None:
    done: list[int] = []
    changes = recall_changes([line], SIZE, by_pixels, {"blind": blind, "same": by_pixels}, on_progress=done.append)
    assert sum(done) == 18
    (lost,), (kept,) = changes["blind"], changes["same"]
    assert (lost.evaluation_set, lost.radius_m, lost.queries) == ("line", 25.0, 8)
    assert (lost.before, lost.after, lost.change) == (1.0, 1 / 8, -7 / 8)
    assert lost.chance == pytest.approx(0.1)
    assert lost.low <= -7 / 8 <= lost.high < 0
    assert (kept.before, kept.after, kept.change, kept.low, kept.high) == (1.0, 1.0, 0.0, 0.0, 0.0)


def test_no_evaluation_set_no_change() -> None:
    assert recall_changes([], SIZE, blind, {"whitened": blind}) == {"whitened": ()}


def test_queries_elsewhere_are_an_error(line: EvalSet, tmp_path: Path) -> None:
    far = make_places(tmp_path, 2, origin=(0.0, 0.0)).rows
    with pytest.raises(ParameterError, match="none of the 2 queries"):
        recall_changes([EvalSet("far", line.database, tuple(far))], SIZE, blind, {})
