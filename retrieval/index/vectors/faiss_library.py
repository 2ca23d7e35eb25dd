"""FAISS, set up for few cores and small batches, and its files."""

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from retrieval.errors import MissingExtraError, PlaceIndexError
from retrieval.machine import available_cores

# From so many queries on, fp32 rows are compared through BLAS: measured at 512 and at 1280 numbers, one thread.
BLAS_FROM_QUERIES: Final = 3

_WRITE_BUFFER: Final = 1 << 20


def faiss_module() -> ModuleType:
    """FAISS.

    Raises:
        MissingExtraError: it is not installed.
    """
    # Read once, when OpenMP is loaded. Threads that wait by spinning are up to 45 times slower on a machine with other
    # work to do (measured: training 32 parts of codes, 0.8 s against 34 s).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import faiss
    except ImportError as error:
        raise MissingExtraError(
            "FAISS is not installed", remedy="Run: pip install 'sightfix[cpu]' (or [gpu] beside CUDA)"
        ) from error
    module: ModuleType = faiss
    return module


def set_up_search(faiss: ModuleType, dim: int) -> None:
    """Call right before each search: it costs 0.2 µs.

    One thread: a single query mostly waits for memory, and beside BLAS's own threads OpenMP's fight (measured: 127
    against 10-65 queries/s). OpenMP keeps the number for each calling thread.

    The BLAS threshold is FAISS's one number for ``queries × dim``; its default of 128,000 makes batches ten times
    slower on few cores, and a small one makes single queries 2.5 times slower (faiss pull requests 5022 and 5109).

    Args:
        faiss: the module.
        dim: length of the descriptors that are searched.
    """
    faiss.omp_set_num_threads(1)
    faiss.cvar.distance_compute_blas_threshold = BLAS_FROM_QUERIES * dim


def set_up_training(faiss: ModuleType) -> None:
    """Call before training and adding: all cores, and BLAS always."""
    faiss.omp_set_num_threads(available_cores())
    faiss.cvar.distance_compute_blas_threshold = 1


def read_faiss_index(path: Path, *, memory_map: bool) -> Any:
    """Read an index file.

    Args:
        path: of the file.
        memory_map: leave the numbers on the disk, to be paged in as they are needed.

    Raises:
        PlaceIndexError: FAISS cannot read it.
    """
    faiss = faiss_module()
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if memory_map else 0)
    except RuntimeError as error:
        raise PlaceIndexError(
            f"FAISS cannot read the vectors ({error})", where=str(path), remedy="Build the index again"
        ) from error


def write_faiss_index(index: Any, write: Callable[[bytes], int]) -> None:
    """Serialise an index through a file's write method, so that a full disk shows as the OSError it is."""
    faiss = faiss_module()
    failure: list[OSError] = []

    def guarded(data: bytes) -> int:
        try:
            return write(data)
        except OSError as error:
            failure.append(error)
            raise

    try:
        faiss.write_index(index, faiss.PyCallbackIOWriter(guarded, _WRITE_BUFFER))
    except Exception:
        if failure:
            raise failure[0] from None
        raise
