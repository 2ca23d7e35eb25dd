import numpy as np
import pytest

from retrieval.errors import ParameterError
from retrieval.evaluation import exact_ranking
from retrieval.evaluation import protocol as ranking_module


def unit_rows(count: int, dimension: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_order_and_scores_are_those_of_the_cosine() -> None:
    database, queries = unit_rows(50, 8, 0), unit_rows(9, 8, 1)
    cosine = queries.astype(np.float64) @ database.T.astype(np.float64)
    rows, scores = exact_ranking(database, queries, 50)
    np.testing.assert_array_equal(rows, np.argsort(-cosine, axis=1))
    np.testing.assert_allclose(scores, -np.sort(-cosine, axis=1), atol=1e-6)


def test_a_small_database_is_padded() -> None:
    rows, scores = exact_ranking(unit_rows(3, 4, 0), unit_rows(2, 4, 1), 5)
    assert rows.dtype == np.int64
    assert (rows[:, 3:] == -1).all()
    assert np.isneginf(scores[:, 3:]).all()
    assert sorted(rows[0, :3]) == [0, 1, 2]


@pytest.mark.parametrize("queries", [1, 63, 64, 127, 128, 200])
def test_blocks_give_what_one_call_gives(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    database, wanted = unit_rows(40, 8, 0), unit_rows(queries, 8, 1)
    whole = exact_ranking(database, wanted, 7)
    monkeypatch.setattr(ranking_module, "_FAISS_BLOCK", 64)
    seen: list[int] = []
    blocks = exact_ranking(database, wanted, 7, seen.append)
    np.testing.assert_array_equal(blocks[0], whole[0])
    assert sum(seen) == queries
    assert len(seen) == max(1, queries // 64)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ParameterError, match="do not fit together"):
        exact_ranking(unit_rows(3, 4, 0), unit_rows(2, 5, 1), 1)
    with pytest.raises(ParameterError, match="below 1"):
        exact_ranking(unit_rows(3, 4, 0), unit_rows(2, 4, 1), 0)
