"""Search on a GPU through FAISS: the GPU names candidates, and the CPU's exact vectors score them.

FAISS's GPU indexes are not safe to use from several threads, even for reading, and some ignore selectors without a word
(faiss#3924). So one thread of its own makes, searches and frees the index, and a geo prior never reaches the GPU.
"""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.describer import Descriptors
from retrieval.errors import DeviceError, ProviderUnavailableError
from retrieval.index.sampling import evenly_spaced
from retrieval.index.vectors.candidates import StoredVectors
from retrieval.index.vectors.exact import empty_result
from retrieval.index.vectors.faiss_library import faiss_module

# FAISS's kernels keep no more matches of a query, and look at no more lists.
GPU_LIMIT: Final = 2048

TEMP_MEMORY: Final = 256 * 1024 * 1024

# fp16 may swap neighbours at the edge; the spare ones are scored on the CPU too.
_SPARE: Final = 16

_COPY_ROWS: Final = 65_536
_CANARIES: Final = 64
_MIN_FOUND: Final = 0.95
_SAME_SCORE: Final = 1e-3
Value = TypeVar("Value")


class GpuVectors(StoredVectors):
    """Stored vectors whose candidates are named by a GPU. Thread-safe: one thread of its own does all GPU work.

    Scores are always those of the exact vectors on the CPU. Geo priors, and searches of more than `GPU_LIMIT`
    candidates or lists, run on the CPU, as does everything after `close`.

    Args:
        vectors: of an opened place index; type exact, ivf or ivf-int8.
        faiss: the module; None imports it.

    Raises:
        ProviderUnavailableError: FAISS has no GPU support, finds no GPU, or has no such index on a GPU.
        DeviceError: the GPU refused, as for lack of memory, or does not find stored rows again.
    """

    def __init__(self, vectors: StoredVectors, faiss: ModuleType | None = None) -> None:
        super().__init__(vectors.exact, vectors.candidates)
        self._gpu_faiss = faiss or faiss_module()
        _check_support(self._gpu_faiss, vectors)
        self._owner: int | None = None
        self._resources: Any = None
        self._gpu_index: Any = None
        self._thread = ThreadPoolExecutor(1, "gpu-search")
        try:
            self._on_thread(self._put)
            self._check_canaries()
        except BaseException:
            self.close()
            raise

    def search(
        self, queries: Descriptors, k: int, *, effort: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `StoredVectors.search`.

        Raises:
            DeviceError: the GPU refused, or named rows that do not exist.
        """
        rerank = self.candidates.parameters.rerank if self.candidates else 1
        wanted = min(k * rerank + _SPARE, self.exact.count)
        lists = (effort or self.candidates.parameters.effort) if self.candidates else 1
        if self._gpu_index is None or wanted > GPU_LIMIT or lists > GPU_LIMIT or not wanted or not len(queries):
            return super().search(queries, k, effort=effort)
        queries = np.ascontiguousarray(queries, np.float32)
        named = self._on_thread(lambda: self._name(queries, wanted, lists))
        if named is None:  # closed while this search waited
            return super().search(queries, k, effort=effort)
        rows, scores = empty_result(len(queries), k)
        for place, query in enumerate(queries):
            some = np.unique(named[place][named[place] >= 0])
            rows[place], scores[place] = self.exact.search_rows(query, k, some)
        return rows, scores

    def close(self) -> None:
        """Give the GPU's memory back, on the thread that took it; searches go on on the CPU."""
        try:
            self._thread.submit(self._free).result()
        except RuntimeError:
            return  # closed before
        self._thread.shutdown(wait=False)

    def _on_thread(self, work: Callable[[], Value]) -> Value | None:
        try:
            waiting = self._thread.submit(work)
        except RuntimeError:
            return None
        try:
            return waiting.result()
        except (RuntimeError, MemoryError) as error:
            raise DeviceError(
                f"FAISS failed on the GPU ({error})",
                remedy="Free GPU memory (nvidia-smi shows who uses it), or search on the CPU",
            ) from error

    def _put(self) -> None:
        faiss = self._gpu_faiss
        self._owner = threading.get_ident()
        self._resources = faiss.StandardGpuResources()
        self._resources.setTempMemory(TEMP_MEMORY)
        if self.candidates is not None:
            options = faiss.GpuClonerOptions()
            options.useFloat16 = True
            options.use_cuvs = False
            options.indicesOptions = faiss.INDICES_64_BIT
            options.reserveVecs = self.candidates.count
            self._gpu_index = faiss.index_cpu_to_gpu(self._resources, 0, self.candidates.index, options)
            return
        config = faiss.GpuIndexFlatConfig()
        config.device = 0
        config.useFloat16 = True
        config.use_cuvs = False
        index = faiss.GpuIndexFlatIP(self._resources, self.exact.dim, config)
        for start in range(0, self.exact.count, _COPY_ROWS):
            rows = np.arange(start, min(start + _COPY_ROWS, self.exact.count), dtype=np.int64)
            index.add(self.exact.descriptors(rows))
        self._gpu_index = index

    def _name(self, queries: Descriptors, wanted: int, lists: int) -> NDArray[np.int64] | None:
        if self._gpu_index is None:
            return None
        assert threading.get_ident() == self._owner, "only its owner thread may search a GPU index"
        settings = None
        if self.candidates is not None:
            lists = min(lists, int(self._gpu_index.nlist))
            settings = self._gpu_faiss.SearchParametersIVF(nprobe=lists)
        found: NDArray[np.int64] = self._gpu_index.search(queries, wanted, params=settings)[1]
        if found.min() < -1 or found.max() >= self.exact.count:
            raise DeviceError(
                f"the GPU named rows {found.min()} to {found.max()} of {self.exact.count}",
                remedy="Search on the CPU, and report the versions of FAISS and the driver",
            )
        return found

    def _free(self) -> None:
        self._gpu_index = None
        self._resources = None

    def _check_canaries(self) -> None:
        """Stored rows must find themselves, or their like, before anything is answered."""
        if not self.exact.count:
            return
        rows = evenly_spaced(self.exact.count, _CANARIES)
        descriptors = self.exact.descriptors(rows)
        _, best = super().search(descriptors, 1)
        _, scores = self.search(descriptors, 1)
        found = float(np.mean(scores[:, 0] >= best[:, 0] - _SAME_SCORE))
        if found < _MIN_FOUND:
            raise DeviceError(
                f"the GPU finds only {found:.0%} of stored rows that the CPU finds",
                remedy="Search on the CPU, and report the versions of FAISS and the driver",
            )


def _check_support(faiss: ModuleType, vectors: StoredVectors) -> None:
    if not hasattr(faiss, "StandardGpuResources"):
        raise ProviderUnavailableError(
            f"the installed FAISS has no GPU support (it was compiled with {faiss.get_compile_options().strip()})",
            remedy="Run: pip uninstall faiss-cpu; pip install 'sightfix[gpu]'",
        )
    if faiss.get_num_gpus() < 1:
        raise ProviderUnavailableError("FAISS finds no GPU", remedy="Check nvidia-smi and CUDA_VISIBLE_DEVICES")
    if vectors.type not in ("exact", "ivf", "ivf-int8"):
        raise ProviderUnavailableError(
            f"an index of type {vectors.type} is not searched on a GPU",
            remedy="Build it with --type exact, ivf or ivf-int8, or search on the CPU",
        )
    if vectors.candidates is not None and vectors.candidates.parameters.effort > GPU_LIMIT:
        raise ProviderUnavailableError(
            f"the index looks at {vectors.candidates.parameters.effort} lists, a GPU at {GPU_LIMIT} at most",
            remedy="Build it with fewer lists, or search on the CPU",
        )
