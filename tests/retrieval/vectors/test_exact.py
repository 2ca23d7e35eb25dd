import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.errors import MissingExtraError, PlaceIndexError
from retrieval.index.vectors import exact as exact_vectors
from retrieval.index.vectors.exact import ExactVectors
from retrieval.index.vectors.faiss_library import faiss_module
from tests.hypothesis_profiles import examples
from tests.retrieval.refusal import refused
from tests.retrieval.slow_search import assert_k_best

STORAGES = ("fp32", "fp16", "int8")


def unit_rows(count: int, dim: int = 16, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def stored(descriptors: np.ndarray, storage: str) -> ExactVectors:
    return ExactVectors.from_descriptors([descriptors], descriptors.shape[1], storage, sample=descriptors)


def true_scores(vectors: ExactVectors, query: np.ndarray) -> np.ndarray:
    return vectors.descriptors(np.arange(vectors.count)).astype(np.float64) @ query


def write_to(vectors: ExactVectors, path: Path) -> Path:
    with path.open("wb") as file:
        vectors.write(file.write)
    return path


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("queries", [1, 2, 3, 11, 12, 40])
def test_search_is_the_slow_search(storage: str, queries: int) -> None:
    """On both sides of the batch size at which FAISS turns to BLAS."""
    descriptors, asked = unit_rows(700), unit_rows(queries, seed=1)
    vectors = stored(descriptors, storage)
    rows, scores = vectors.search(asked, 12)
    assert (rows.dtype, rows.shape, scores.dtype, scores.shape) == (np.int64, (queries, 12), np.float32, (queries, 12))
    for place, query in enumerate(asked):
        assert_k_best(rows[place], scores[place], true_scores(vectors, query), np.arange(700), 12)


@settings(max_examples=examples(100))
@given(st.sampled_from(STORAGES), st.integers(1, 400), st.integers(1, 30), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_search_in_some_rows_is_the_slow_search(storage: str, count: int, k: int, seed: int, share: float) -> None:
    descriptors, query = unit_rows(count, seed=seed), unit_rows(1, seed=seed + 1)[0]
    some = np.flatnonzero(np.random.default_rng(seed).random(count) < share)
    vectors = stored(descriptors, storage)
    rows, scores = vectors.search_rows(query, k, some)
    assert_k_best(rows, scores, true_scores(vectors, query), some, k)


@pytest.mark.parametrize("storage", STORAGES)
def test_many_rows_are_scanned_in_pieces(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_vectors, "_SCAN_ROWS", 7)
    descriptors, query = unit_rows(200), unit_rows(1, seed=1)[0]
    some = np.arange(3, 190, 2)
    vectors = stored(descriptors, storage)
    rows, scores = vectors.search_rows(query, 20, some)
    assert_k_best(rows, scores, true_scores(vectors, query), some, 20)


@pytest.mark.parametrize("storage", STORAGES)
def test_all_rows_searched_as_some_give_the_same(storage: str) -> None:
    descriptors, query = unit_rows(300), unit_rows(1, seed=1)
    vectors = stored(descriptors, storage)
    rows, scores = vectors.search(query, 300)
    some_rows, some_scores = vectors.search_rows(query[0], 300, np.arange(300))
    assert np.array_equal(rows[0], some_rows)
    np.testing.assert_allclose(scores[0], some_scores, atol=1e-6)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("k", [5, 6, 50])
def test_k_at_and_above_the_count_is_filled_up(storage: str, k: int) -> None:
    rows, scores = stored(unit_rows(5), storage).search(unit_rows(2, seed=1), k)
    assert sorted(rows[0, :5].tolist()) == [0, 1, 2, 3, 4]
    assert (rows[:, 5:] == -1).all()
    assert (scores[:, 5:] == -np.inf).all()
    assert np.isfinite(scores[:, :5]).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_no_queries_and_no_rows_find_nothing(storage: str) -> None:
    vectors = stored(unit_rows(5), storage)
    assert vectors.search(np.empty((0, 16), np.float32), 3)[0].shape == (0, 3)
    rows, scores = vectors.search_rows(unit_rows(1)[0], 3, np.empty(0, np.int64))
    assert rows.tolist() == [-1, -1, -1]
    assert (scores == -np.inf).all()


@pytest.mark.parametrize("storage", STORAGES)
def test_ties_are_broken_the_same_way_every_time(storage: str) -> None:
    """Half of the rows are one photo: alone, in threads and inside a prior the same ones are found.

    In batches BLAS may give equal rows scores that differ in the last bit, on some processors: then others of the equal
    rows are found, but the same ones each time.
    """
    descriptors = unit_rows(600, dim=64)
    descriptors[::2] = descriptors[0]
    vectors, query = stored(descriptors, storage), descriptors[:1]
    alone = vectors.search(query, 40)[0][0]
    assert set(alone.tolist()) <= set(range(0, 600, 2))
    assert np.array_equal(vectors.search_rows(query[0], 40, np.arange(600))[0], alone)
    queries = np.repeat(query, 20, axis=0)
    batch, scores = vectors.search(queries, 40)
    assert set(batch.ravel().tolist()) <= set(range(0, 600, 2))
    np.testing.assert_allclose(scores, vectors.search(query, 40)[1][0, 0], atol=1e-6)
    assert all(len(set(rows.tolist())) == 40 for rows in batch)
    assert np.array_equal(vectors.search(queries, 40)[0], batch)
    with ThreadPoolExecutor(4) as threads:
        others = list(threads.map(lambda _: vectors.search(query, 40)[0][0], range(16)))
    assert all(np.array_equal(alone, other) for other in others)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("memory_map", [False, True])
def test_a_written_file_is_read_again(storage: str, memory_map: bool, tmp_path: Path) -> None:
    descriptors = unit_rows(100)
    pieces = (descriptors[:33], descriptors[33:34], descriptors[34:])
    made = ExactVectors.from_descriptors(pieces, 16, storage, sample=descriptors)
    path = write_to(made, tmp_path / "v.faiss")
    vectors = ExactVectors.read(path, storage, memory_map=memory_map)
    assert (vectors.count, vectors.dim, vectors.storage) == (100, 16, storage)
    assert vectors.bytes_per_row == 16 * {"fp32": 4, "fp16": 2, "int8": 1}[storage]
    assert path.stat().st_size < 100 * vectors.bytes_per_row + 400
    some = np.array([99, 0, 34, 34])
    np.testing.assert_allclose(
        vectors.descriptors(some), descriptors[some], atol={"fp32": 0, "fp16": 1e-3, "int8": 5e-3}[storage]
    )
    assert vectors.search(descriptors[57:58], 1)[0].tolist() == [[57]]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("memory_map", [False, True])
def test_rows_taken_over_stay_the_same_bit_by_bit(storage: str, memory_map: bool, tmp_path: Path) -> None:
    """Also in int8, whose steps would be others if they were chosen anew from the rows that remain."""
    old = stored(unit_rows(400), storage)
    old = ExactVectors.read(write_to(old, tmp_path / "v.faiss"), storage, memory_map=memory_map)
    some = np.arange(100, 130)
    new = old.empty_alike()
    new.add(old.descriptors(some))
    assert np.array_equal(new.descriptors(np.arange(30)), old.descriptors(some))


@pytest.mark.parametrize("storage", STORAGES)
def test_batches_in_blocks_are_the_slow_search(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks smaller than k, and a last one that is not full."""
    monkeypatch.setattr(exact_vectors, "_BLOCK_ROWS", 9)
    vectors, asked = stored(unit_rows(200), storage), unit_rows(30, seed=1)
    rows, scores = vectors.search(asked, 14)
    for place, query in enumerate(asked):
        assert_k_best(rows[place], scores[place], true_scores(vectors, query), np.arange(200), 14)


@pytest.mark.parametrize("content", [b"", b"no index", b"IxFI" + bytes(3)])
def test_a_file_that_is_no_index_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "v.faiss"
    path.write_bytes(content)
    with pytest.raises(PlaceIndexError) as caught:
        ExactVectors.read(path, "fp32")
    assert str(caught.value).startswith(f"{path}: FAISS cannot read the vectors (")
    assert str(caught.value).endswith("). Build the index again.")
    assert caught.value.code == "place_index_damaged"


@pytest.mark.parametrize(
    ("index", "storage"),
    [
        (faiss.IndexFlatIP(16), "fp16"),
        (faiss.IndexScalarQuantizer(16, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT), "fp32"),
        (faiss.IndexFlatL2(16), "fp32"),
        (faiss.IndexScalarQuantizer(16, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2), "fp16"),
        (faiss.IndexScalarQuantizer(16, faiss.ScalarQuantizer.QT_bf16, faiss.METRIC_INNER_PRODUCT), "fp16"),
        (faiss.IndexHNSWFlat(16, 8, faiss.METRIC_INNER_PRODUCT), "fp32"),
    ],
    ids=["fp32 as fp16", "fp16 as fp32", "L2", "fp16 L2", "bf16", "HNSW"],
)
def test_another_type_of_index_is_refused(index: object, storage: str, tmp_path: Path) -> None:
    path = tmp_path / "v.faiss"
    faiss.write_index(index, str(path))
    text = f"{path}: the vectors are not an exact {storage} index."
    with refused(PlaceIndexError, text, "place_index_damaged"):
        ExactVectors.read(path, storage)


def test_a_full_disk_shows_as_the_error_it_is() -> None:
    with (
        pytest.raises(OSError, match="No space left on device"),
        open("/dev/full", "wb", buffering=0) as full,  # noqa: PTH123
    ):
        stored(unit_rows(1000), "fp32").write(full.write)


def test_a_missing_faiss_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    text = "FAISS is not installed. Run: pip install 'sightfix[cpu]' (or [gpu] beside CUDA)."
    with refused(MissingExtraError, text, "missing_extra"):
        stored(unit_rows(1), "fp32")


@pytest.mark.parametrize("prior", [False, True])
def test_every_thread_that_searches_uses_one_openmp_thread(prior: bool) -> None:
    """The server searches on a thread of its own, and OpenMP keeps its number of threads for each."""
    faiss = faiss_module()
    vectors = ExactVectors.from_descriptors([np.eye(4, dtype=np.float32)], 4, "fp32")
    used: list[int] = []

    def search() -> None:
        faiss.omp_set_num_threads(2)
        if prior:
            vectors.search_rows(np.eye(4, dtype=np.float32)[0], 1, np.arange(4))
        else:
            vectors.search(np.eye(4, dtype=np.float32)[:1], 1)
        used.append(faiss.omp_get_max_threads())

    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    assert used == [1]
