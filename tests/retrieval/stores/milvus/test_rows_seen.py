"""Rows that were seen are not asked for again."""

import numpy as np

from retrieval.index.milvus.collection import MilvusRow
from retrieval.index.milvus.place_index import RowsSeen


def row(number: int, described: bool) -> MilvusRow:
    return MilvusRow(number, 1.0, 2.0, {"id": str(number)}, np.ones(3, np.float32) if described else None)


def test_each_row_is_fetched_once_and_the_oldest_are_forgotten() -> None:
    asked: list[tuple[list[int], bool]] = []

    def fetch(rows: list[int], described: bool) -> list[MilvusRow]:
        asked.append((rows, described))
        return [row(number, described) for number in rows]

    seen = RowsSeen(fetch, most=3)
    seen.keep([row(1, False)])
    assert [one.row for one in seen.get([2, 1, 2])] == [2, 1, 2]
    assert asked == [([2], False)]
    # Descriptors are fetched for those that have none, and stay.
    assert all(one.descriptor is not None for one in seen.get([1, 2], descriptors=True))
    seen.keep([row(1, False)])
    seen.get([1, 2], descriptors=True)
    assert asked[1:] == [([1, 2], True)]
    seen.get([3, 4])  # 1 or 2 goes
    assert len(seen._rows) == 3
    assert [one.row for one in seen.get([1, 2, 3, 4, 5])] == [1, 2, 3, 4, 5]  # more than are kept
