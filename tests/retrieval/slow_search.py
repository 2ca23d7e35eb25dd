"""What the k best rows are, worked out row by row."""

import numpy as np


def assert_k_best(rows: np.ndarray, scores: np.ndarray, true_scores: np.ndarray, allowed: np.ndarray, k: int) -> None:
    """These are the k best of the allowed rows, best first; only rows that score within 1e-5 may stand for each other.

    Args:
        rows, scores: (k,) as a search returned them.
        true_scores: (N,) of every row.
        allowed: (R,) the rows that may be found.
        k: how many were asked for.
    """
    count = min(k, len(allowed))
    assert rows.shape == scores.shape == (k,)
    found = rows[:count]
    assert len(np.unique(found)) == count
    assert np.isin(found, allowed).all()
    np.testing.assert_allclose(true_scores[found], np.sort(true_scores[allowed])[::-1][:count], atol=1e-5)
    np.testing.assert_allclose(scores[:count], true_scores[found], atol=1e-5)
    assert (rows[count:] == -1).all()
    assert (scores[count:] == -np.inf).all()
