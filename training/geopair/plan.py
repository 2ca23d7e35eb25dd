"""What is planned for one epoch: batches of pairs, as rows of the photo table."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.geopair.arrays import Int64Array


@dataclass(frozen=True, eq=False)
class PairBatch:
    """n pairs of one batch, no two of which show the same place.

    Attributes:
        queries: (n,) int64 rows of the photo table.
        positives: (n,) int64, taken near their query.
        negatives: (n, K) int64, the hardest first, or None without negative mining.
    """

    queries: Int64Array
    positives: Int64Array
    negatives: Int64Array | None


@dataclass(frozen=True, eq=False)
class EpochPlan:
    """The batches of one epoch, in order.

    Attributes:
        epoch: from 0.
        batches: at least one.
        dropped: sampled queries that fitted into no batch.
    """

    epoch: int
    batches: tuple[PairBatch, ...]
    dropped: int

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The plan as a few int64 arrays, for a checkpoint."""
        arrays: dict[str, NDArray[Any]] = {
            "epoch": np.array([self.epoch], np.int64),
            "dropped": np.array([self.dropped], np.int64),
            "sizes": np.array([len(batch.queries) for batch in self.batches], np.int64),
            "queries": np.concatenate([batch.queries for batch in self.batches]),
            "positives": np.concatenate([batch.positives for batch in self.batches]),
        }
        negatives = [batch.negatives for batch in self.batches if batch.negatives is not None]
        if negatives:
            arrays["negatives"] = np.concatenate(negatives)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "EpochPlan":
        """The plan that `to_arrays` gave.

        Raises:
            KeyError: an array is missing.
        """
        ends = np.cumsum(arrays["sizes"])[:-1]
        queries = np.split(np.asarray(arrays["queries"], np.int64), ends)
        positives = np.split(np.asarray(arrays["positives"], np.int64), ends)
        if "negatives" in arrays:
            negatives: list[Int64Array | None] = [*np.split(np.asarray(arrays["negatives"], np.int64), ends)]
        else:
            negatives = [None] * len(queries)
        batches = tuple(PairBatch(*rows) for rows in zip(queries, positives, negatives, strict=True))
        return cls(int(arrays["epoch"][0]), batches, int(arrays["dropped"][0]))
