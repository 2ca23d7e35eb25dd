"""Fill an approximate index with stored descriptors."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.vectors.design import training_rows
from retrieval.vectors.candidates import CandidateParameters, Candidates
from retrieval.vectors.exact import ExactVectors

_COPY_ROWS: Final = 8192


def build_candidates(exact: ExactVectors, parameters: CandidateParameters) -> Candidates:
    """Train on a sample of the stored descriptors, and add all of them.

    Raises:
        ParameterError: parameters that do not fit the rows.
    """
    sample = exact.descriptors(sample_of(exact.count, training_rows(parameters, exact.count)))
    candidates = Candidates.train(parameters, sample)
    for start in range(0, exact.count, _COPY_ROWS):
        candidates.add(exact.descriptors(np.arange(start, min(start + _COPY_ROWS, exact.count))))
    return candidates


def sample_of(count: int, size: int) -> NDArray[np.int64]:
    """(≤ size,) rows of `count`, drawn the same way every time, rising."""
    if count <= size:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, size, replace=False))
