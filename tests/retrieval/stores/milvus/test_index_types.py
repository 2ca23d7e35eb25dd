"""Parameters of Milvus's index types."""

import pytest

from retrieval.errors import ParameterError
from retrieval.index.milvus.collection import (
    FACTS,
    MILVUS_TYPES,
    build_parameters,
    check_milvus_type,
    most_effort,
    search_parameters,
)


def test_every_type_is_known_in_any_case() -> None:
    assert set(FACTS) == set(MILVUS_TYPES)
    assert check_milvus_type("gpu_cagra") == "GPU_CAGRA"
    with pytest.raises(ParameterError, match=r"there is no Milvus index type 'IVF'.*IVF_FLAT"):
        check_milvus_type("IVF")


@pytest.mark.parametrize(("rows", "lists"), [(1, 1), (100, 2), (10_000, 256), (500_000, 2828), (1_000_000_000, 2828)])
def test_lists_go_with_the_rows_of_a_segment(rows: int, lists: int) -> None:
    build = build_parameters("IVF_FLAT", rows, 512)
    assert build == {"nlist": lists}
    assert most_effort("IVF_FLAT", build) == lists


def test_what_the_user_gives_goes_first() -> None:
    assert build_parameters("HNSW", 10, 512, {"M": 32}) == {"M": 32, "efConstruction": 200}
    assert build_parameters("IVF_PQ", 10_000, 512)["m"] == 128
    assert build_parameters("GPU_CAGRA", 10, 512)["graph_degree"] == 64
    assert build_parameters("FLAT", 10, 512) == {}


def test_a_graph_is_walked_for_at_least_as_many_as_are_wanted() -> None:
    assert search_parameters("HNSW", 16, 100) == {"ef": 100}
    assert search_parameters("HNSW", 256, 100) == {"ef": 256}
    assert search_parameters("GPU_CAGRA", 64, 10) == {"itopk_size": 64}
    assert search_parameters("IVF_FLAT", 16, 100) == {"nprobe": 16}
    assert search_parameters("FLAT", None, 10) == {}


def test_no_effort_is_beyond_what_a_type_takes() -> None:
    assert most_effort("HNSW", build_parameters("HNSW", 10, 8)) == 2_048
    assert most_effort("GPU_CAGRA", build_parameters("GPU_CAGRA", 10, 8)) == 512
