import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest

from retrieval.errors import DeviceError, ProviderUnavailableError
from retrieval.index.vectors.candidates import CandidateParameters, Candidates, StoredVectors
from retrieval.index.vectors.exact import ExactVectors
from retrieval.index.vectors.gpu import GPU_LIMIT, TEMP_MEMORY, GpuVectors
from tests.retrieval.vectors.fake_faiss_gpu import FakeFaissGpu


def unit_rows(count: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def stored(kind: str, storage: str = "fp32") -> StoredVectors:
    rows = unit_rows(3000)
    exact = ExactVectors.from_descriptors([rows], 16, storage, sample=rows)
    if kind == "exact":
        return StoredVectors(exact)
    candidates = Candidates.train(CandidateParameters(type=kind, lists=8, effort=8), rows)
    candidates.add(rows)
    return StoredVectors(exact, candidates)


@pytest.mark.parametrize(
    ("kind", "storage"),
    [("exact", "fp32"), ("exact", "fp16"), ("exact", "int8"), ("ivf", "fp32"), ("ivf-int8", "fp16")],
)
def test_the_gpu_answers_as_exact_search_does(kind: str, storage: str) -> None:
    vectors, queries = stored(kind, storage), unit_rows(20, seed=1)
    on_gpu = GpuVectors(vectors, FakeFaissGpu())
    rows, scores = on_gpu.search(queries, 5)
    true_rows, true_scores = vectors.exact.search(queries, 5)
    assert np.array_equal(rows, true_rows)
    assert np.allclose(scores, true_scores, atol=1e-6)


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_prior_never_reaches_a_gpu_that_ignores_selectors(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, inside, query = FakeFaissGpu(), np.arange(100, 200), unit_rows(1, seed=1)[0]
    on_gpu = GpuVectors(stored(kind), fake)
    for largest_exact in (100_000, 10):
        monkeypatch.setattr("retrieval.index.vectors.candidates.EXACT_PRIOR_ROWS", largest_exact)
        rows, _ = on_gpu.search_rows(query, 7, inside)
        true = on_gpu.exact.descriptors(inside) @ query
        assert np.array_equal(rows, inside[np.argsort(-true)[:7]])
    assert fake.selectors == 0


def test_one_thread_does_all_gpu_work_with_little_scratch_memory() -> None:
    fake = FakeFaissGpu()
    on_gpu = GpuVectors(stored("exact"), fake)
    with ThreadPoolExecutor(4) as callers:
        list(callers.map(lambda seed: on_gpu.search(unit_rows(3, seed), 3), range(20)))
    assert len(fake.threads) == 1
    assert threading.get_ident() not in fake.threads
    assert fake.temp_memory == TEMP_MEMORY
    with pytest.raises(AssertionError, match="owner thread"):
        on_gpu._name(unit_rows(1), 3, 1)


@pytest.mark.parametrize("spoil", [lambda rows: rows * 0 + 7, lambda rows: rows * 0 - 1, lambda rows: rows + 10_000])
def test_a_gpu_that_returns_garbage_never_answers(spoil: Callable[[np.ndarray], np.ndarray]) -> None:
    with pytest.raises(DeviceError, match=r"GPU finds only|GPU named rows"):
        GpuVectors(stored("exact"), FakeFaissGpu(spoil=spoil))


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_full_gpu_is_a_clear_error(kind: str) -> None:
    with pytest.raises(DeviceError, match="out of memory") as raised:
        GpuVectors(stored(kind), FakeFaissGpu(full=True))
    assert "nvidia-smi" in str(raised.value.remedy)


def test_what_a_gpu_cannot_do_the_cpu_does() -> None:
    on_gpu, query = GpuVectors(stored("exact"), FakeFaissGpu()), unit_rows(1, seed=1)
    assert (on_gpu.search(query, GPU_LIMIT + 1)[0] >= 0).all()
    before = on_gpu.search(query, 5)[0]
    on_gpu.close()
    on_gpu.close()
    assert np.array_equal(on_gpu.search(query, 5)[0], before)


def test_without_gpu_support_or_gpu_or_for_a_graph_the_error_says_so() -> None:
    vectors = stored("exact")
    with pytest.raises(ProviderUnavailableError, match="finds no GPU"):
        GpuVectors(vectors, FakeFaissGpu(gpus=0))
    if not hasattr(faiss, "StandardGpuResources"):
        with pytest.raises(ProviderUnavailableError, match="no GPU support"):
            GpuVectors(vectors)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["exact", "ivf", "ivf-int8"])
def test_a_real_gpu_answers_as_exact_search_does(kind: str) -> None:
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        pytest.skip("faiss-gpu or a GPU is missing")
    vectors, queries = stored(kind), unit_rows(20, seed=1)
    assert np.array_equal(GpuVectors(vectors).search(queries, 5)[0], vectors.exact.search(queries, 5)[0])
