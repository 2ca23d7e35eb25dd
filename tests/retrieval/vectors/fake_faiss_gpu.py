"""FAISS with the surface of its GPU classes, computed on the CPU: it notes threads and ignores selectors."""

import threading
from types import SimpleNamespace
from typing import Any

import faiss
import numpy as np


class FakeGpuIndex:
    def __init__(self, fake: "FakeFaissGpu", index: Any) -> None:
        self._fake, self._index = fake, index
        self.nlist = getattr(index, "nlist", 0)

    def add(self, rows: np.ndarray) -> None:
        self._fake.used()
        if self._fake.full:
            raise RuntimeError("Error in StandardGpuResourcesImpl::allocMemory: cudaMalloc error out of memory")
        self._index.add(rows.astype(np.float16).astype(np.float32))

    def search(self, queries: np.ndarray, k: int, params: Any = None) -> tuple[np.ndarray, np.ndarray]:
        self._fake.used()
        assert k <= 2048
        # As the flat index of a real GPU: a selector changes nothing, without a word.
        self._fake.selectors += getattr(params, "sel", None) is not None
        scores, rows = self._index.search(queries, k, params=params if self.nlist else None)
        return scores, self._fake.spoil(rows)


class FakeFaissGpu(SimpleNamespace):
    def __init__(self, *, gpus: int = 1, full: bool = False, spoil: Any = lambda rows: rows) -> None:
        super().__init__(gpus=gpus, full=full, spoil=spoil, threads=set(), selectors=0, temp_memory=None)
        self.INDICES_64_BIT = 2
        self.SearchParametersIVF = faiss.SearchParametersIVF
        self.GpuClonerOptions = self.GpuIndexFlatConfig = SimpleNamespace

    def used(self) -> None:
        self.threads.add(threading.get_ident())

    def get_num_gpus(self) -> int:
        return int(self.gpus)

    def StandardGpuResources(self) -> Any:  # noqa: N802 - FAISS's name
        self.used()
        return SimpleNamespace(setTempMemory=lambda size: setattr(self, "temp_memory", size))

    def GpuIndexFlatIP(self, resources: Any, dim: int, config: Any) -> FakeGpuIndex:  # noqa: N802 - FAISS's name
        assert config.useFloat16
        return FakeGpuIndex(self, faiss.IndexFlatIP(dim))

    def index_cpu_to_gpu(self, resources: Any, device: int, index: Any, options: Any) -> FakeGpuIndex:
        self.used()
        if self.full:
            raise RuntimeError("cudaMalloc error out of memory")
        return FakeGpuIndex(self, index)
