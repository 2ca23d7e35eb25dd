"""Indexes on a GPU against exact search: recall, speed, and whether a selector is kept to. Used by `gpu_check`."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_describing import medians_in_turn
from benchmarks.gpu_outcome import FailedError, SkippedError
from retrieval.describer import Descriptors
from retrieval.index.vectors.candidates import CandidateParameters, Candidates, StoredVectors
from retrieval.index.vectors.exact import ExactVectors
from retrieval.index.vectors.gpu import TEMP_MEMORY, GpuVectors

SIZES = (1_000_000, 10_000_000)
DIM, K, PIECE, SAMPLE = 512, 10, 100_000, 200_000
LISTS, EFFORT = 4096, 64
LEAST_RECALL = {"exact": 0.999, "ivf": 0.9, "cagra": 0.9}
BATCHES = (1, 64)


def pieces_of(count: int) -> Iterator[Descriptors]:
    """Unit rows around 20,000 places, as photos lie: (n, 512) float32 each."""
    centres = np.random.default_rng(0).standard_normal((20_000, DIM), np.float32)
    for start in range(0, count, PIECE):
        rng = np.random.default_rng(1 + start)
        size = min(PIECE, count - start)
        rows = centres[rng.integers(len(centres), size=size)] + rng.standard_normal((size, DIM), np.float32)
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def index_on_gpu(kind: str, count: int) -> str:
    """Recall@10 and time of `GpuVectors` of type exact or ivf, against exact search on the CPU."""
    exact = ExactVectors.from_descriptors(pieces_of(count), DIM, "fp16")
    candidates = None
    if kind == "ivf":
        candidates = Candidates.train(
            CandidateParameters(type="ivf", lists=LISTS, effort=EFFORT), exact.descriptors(np.arange(SAMPLE))
        )
        for piece in pieces_of(count):
            candidates.add(piece)
    on_gpu = GpuVectors(StoredVectors(exact, candidates))
    try:
        return _measured(kind, exact, lambda queries: on_gpu.search(queries, K)[0])
    finally:
        on_gpu.close()


def cagra_on_gpu(count: int) -> str:
    """Recall@10 and time of CAGRA by L2 on unit rows, built on the GPU. Needs faiss-gpu-cuvs."""
    import faiss

    if not hasattr(faiss, "GpuIndexCagra"):
        raise SkippedError("the installed FAISS has no CAGRA (faiss-gpu-cuvs is not installed)")
    exact = ExactVectors.from_descriptors(pieces_of(count), DIM, "fp16")
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(TEMP_MEMORY)
    index = faiss.GpuIndexCagra(resources, DIM, faiss.METRIC_L2, faiss.GpuIndexCagraConfig())
    index.train(np.concatenate(list(pieces_of(count))))
    return _measured("cagra", exact, lambda queries: index.search(queries, K)[1])


def selector_on_gpu(kind: str) -> str:
    """Whether FAISS's own GPU class keeps to a selector. Nothing relies on it: priors are searched on the CPU."""
    import faiss

    rows = next(pieces_of(PIECE))
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(TEMP_MEMORY)
    if kind == "cagra":
        if not hasattr(faiss, "GpuIndexCagra"):
            raise SkippedError("the installed FAISS has no CAGRA (faiss-gpu-cuvs is not installed)")
        index: Any = faiss.GpuIndexCagra(resources, DIM, faiss.METRIC_L2, faiss.GpuIndexCagraConfig())
        settings: Any = faiss.SearchParametersCagra()
    else:
        made = faiss.index_factory(DIM, "Flat" if kind == "exact" else "IVF64,SQfp16", faiss.METRIC_INNER_PRODUCT)
        index = faiss.index_cpu_to_gpu(resources, 0, made)
        settings = faiss.SearchParameters() if kind == "exact" else faiss.SearchParametersIVF(nprobe=64)
    index.train(rows)
    if kind != "cagra":
        index.add(rows)
    selector = faiss.IDSelectorRange(0, 1000)
    settings.sel = selector
    try:
        found = index.search(rows[-64:], K, params=settings)[1]
    except RuntimeError as error:
        return f"a selector is refused ({str(error).splitlines()[0][:120]})"
    return "a selector is kept to" if found.max() < 1000 else "a selector is ignored without a word"


def _measured(kind: str, exact: ExactVectors, search: Callable[[Descriptors], NDArray[np.int64]]) -> str:
    rng = np.random.default_rng(7)
    queries = exact.descriptors(rng.integers(exact.count, size=max(BATCHES)))
    queries += 0.02 * rng.standard_normal(queries.shape, np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    true = exact.search(queries, K)[0]
    found = search(queries)
    recall = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(true, found, strict=True)]))
    times = medians_in_turn([lambda size=size: search(queries[:size]) for size in BATCHES], rounds=5)  # type: ignore[misc]
    speeds = ", ".join(f"batch {size}: {ms:.2f} ms" for size, ms in zip(BATCHES, times, strict=True))
    text = f"recall@{K} {recall:.4f} of exact search; {exact.count} × {DIM}; {speeds}"
    if recall < LEAST_RECALL[kind]:
        raise FailedError(text)
    return text
