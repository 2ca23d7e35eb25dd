"""What is asked of Milvus, and how much at once; the rest is tested against milvus-lite."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from retrieval.index.milvus.collection import MilvusCollection, MilvusSearching, StoredAs
from retrieval.index.milvus.connection import MilvusConnection


class Recording:
    """A client that finds nothing and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def search(self, name: str, **asked: Any) -> list[list[dict[str, Any]]]:
        self.asked.append(asked)
        return [[] for _ in asked["data"]]


def collection(client: Recording, dim: int, **searching: Any) -> MilvusCollection:
    connection = MilvusConnection.__new__(MilvusConnection)
    vars(connection).update(client=client, where="milvus://m", timeout_s=1.0, _lite_file=None, types=SimpleNamespace())
    return MilvusCollection(connection, "c", dim, MilvusSearching(**searching))


@pytest.mark.parametrize(("stored", "number"), [("fp32", np.float32), ("fp16", np.float16)])
def test_queries_are_of_the_kind_that_is_stored(stored: StoredAs, number: type) -> None:
    """Servers before 2.6.9 refuse single-precision queries of half-precision vectors."""
    client = Recording()
    collection(client, 8, stored=stored).search(np.ones((2, 8), np.float32), 3, descriptors=False)
    assert [one.dtype for one in client.asked[0]["data"]] == [number] * 2


def test_answers_stay_below_what_milvus_sends() -> None:
    client = Recording()
    large = collection(client, 8_448)
    most = large.most_rows(descriptors=True)
    assert most * (4 * 8_448 + 1_000) <= 32_000_000
    assert large.most_rows(descriptors=False) == 16_384
    assert collection(client, 8, index_type="GPU_CAGRA").most_rows(descriptors=True) == 1_024
    large.search(np.ones((5, 8_448), np.float32), most, descriptors=True)
    assert [len(one["data"]) for one in client.asked] == [1] * 5


def test_effort_and_metric_are_those_of_the_type() -> None:
    client = Recording()
    queries = np.ones((1, 8), np.float32)
    graph = collection(client, 8, index_type="GPU_CAGRA", effort=64)
    graph.search(queries, 100, descriptors=True)
    graph.search(queries, 5, effort=7, descriptors=True)
    told = [one["search_params"] for one in client.asked]
    assert told == [
        {"metric_type": "L2", "params": {"itopk_size": 100}},
        {"metric_type": "L2", "params": {"itopk_size": 7}},
    ]
