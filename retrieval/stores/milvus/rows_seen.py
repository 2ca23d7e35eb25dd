"""Rows that were asked for lately, so that one answer's fix, evidence and references need one question."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.stores.milvus.collection import MilvusRow

_MOST_ROWS: Final = 16_384


class RowsSeen:
    """The rows seen last. Safe to use from several threads.

    Args:
        fetch: brings rows that were not seen, in the order asked for: row numbers, and whether with descriptors.
        most: rows that are kept.
    """

    def __init__(self, fetch: Callable[[list[int], bool], list[MilvusRow]], most: int = _MOST_ROWS) -> None:
        self._fetch = fetch
        self._most = most
        self._rows: OrderedDict[int, MilvusRow] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, rows: Iterable[MilvusRow]) -> None:
        """Remember rows; one without a descriptor does not push out the same one with it."""
        with self._lock:
            for one in rows:
                if one.descriptor is not None or one.row not in self._rows:
                    self._rows[one.row] = one
                self._rows.move_to_end(one.row)
            while len(self._rows) > self._most:
                self._rows.popitem(last=False)

    def get(self, rows: Sequence[int] | NDArray[np.int64], *, descriptors: bool = False) -> list[MilvusRow]:
        """Rows in the order given; those not seen are fetched at once.

        Args:
            rows: their numbers; repeats are allowed.
            descriptors: whether they must have theirs.
        """
        wanted = [int(row) for row in rows]
        with self._lock:
            known = {row: self._rows[row] for row in wanted if row in self._rows}
        missing = [
            row for row in dict.fromkeys(wanted) if row not in known or (descriptors and known[row].descriptor is None)
        ]
        if missing:
            fetched = self._fetch(missing, descriptors)
            self.keep(fetched)
            known |= {one.row: one for one in fetched}
        return [known[row] for row in wanted]
