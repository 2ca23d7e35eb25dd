"""How large, how slow to build and how quick to search an index will be: before there is one."""

import math
import time
from dataclasses import dataclass
from typing import Final

import numpy as np

from index_builder.vectors.design import parameters_for, training_rows
from retrieval.vectors.candidates import CandidateParameters
from retrieval.vectors.exact import ExactVectors, Storage
from retrieval.vectors.index_types import INDEX_TYPES, IndexType

_STORED_BYTES: Final[dict[Storage, int]] = {"fp32": 4, "fp16": 2, "int8": 1}
_ROW_NUMBER_BYTES: Final = 8
_TABLE_BYTES: Final = 120
_BLOCKS_BYTES: Final = 24 + 16
_LEVEL_SHARE: Final = 1.06  # of a graph's nodes over all levels, to those of the lowest
_TRAINING_ROUNDS: Final = 10

# The share of the lists that has to be looked at for a recall of 95 %, measured on real and on synthetic descriptors
# from 30 thousand to a million rows; see benchmarks/RESULTS.md.
_ASSUMED_SHARE: Final = 0.02
_ASSUMED_RERANKED: Final = 200
# Comparisons of a search through a graph for the same recall, and of adding a row to it.
_GRAPH_VISITS: Final = 2_000
_GRAPH_BUILD_VISITS: Final = 4_000

_PROBE_ROWS: Final = 20_000
_PROBE_SIDE: Final = 768


@dataclass(frozen=True, slots=True)
class MachineSpeed:
    """What this machine does.

    Attributes:
        scan_ns: of comparing a query with one stored number, one thread, by storage.
        multiply_gflops: of multiplying matrices, all cores.
    """

    scan_ns: dict[Storage, float]
    multiply_gflops: float


@dataclass(frozen=True, slots=True)
class PlannedIndex:
    """What an index of a type would be.

    Attributes:
        type: of index.
        storage: of the stored descriptors.
        memory_bytes: in RAM while it serves.
        disk_bytes: of its files.
        build_seconds: of making the index from descriptors; describing the photos is not in it.
        latency_ms: of one query.
        fits: into the memory there is.
    """

    type: IndexType
    storage: Storage
    memory_bytes: int
    disk_bytes: int
    build_seconds: float
    latency_ms: float
    fits: bool


def memory_bytes(parameters: CandidateParameters, rows: int, dim: int) -> int:
    """RAM that candidates take; the stored descriptors beside them stay on the disk."""
    graph = 0
    if parameters.type == "ivf-int8":
        code = dim
    elif parameters.type == "ivf-pq":
        code = parameters.code_parts or 0
    elif parameters.type == "ivf-pq-fast":
        code = math.ceil((parameters.code_parts or 0) / 2)
    else:
        code = 2 * dim
    if parameters.neighbours is not None:
        # Twice the edges on the lowest level, four bytes each, and an offset.
        graph = round(rows * (2 * parameters.neighbours * 4 * _LEVEL_SHARE + 12))
    lists = (parameters.lists or 0) * dim * 4
    return rows * (code + (0 if graph else _ROW_NUMBER_BYTES)) + graph + lists


def plan_indexes(
    rows: int, dim: int, speed: MachineSpeed, memory: int | None = None, storage: Storage = "fp16"
) -> list[PlannedIndex]:
    """What each type of index would be for so many references.

    Args:
        rows: N.
        dim: length of the stored descriptors.
        speed: of the machine that builds and serves.
        memory: bytes there are, or None.
        storage: of the descriptors beside approximate types; exact search is planned with each.
    """
    base = rows * (_TABLE_BYTES + _BLOCKS_BYTES)
    planned = []
    for type_ in INDEX_TYPES:
        for stored in _STORED_BYTES if type_ == "exact" else (storage,):
            exact_bytes = rows * dim * _STORED_BYTES[stored]
            if type_ == "exact":
                ram, disk = exact_bytes, exact_bytes
                seconds, ms = rows * dim * 1e-9, rows * dim * speed.scan_ns[stored] * 1e-6
            else:
                parameters = parameters_for(type_, rows, dim)
                ram = memory_bytes(parameters, rows, dim)
                disk = exact_bytes + ram
                seconds = _build_seconds(parameters, rows, dim, speed)
                ms = _latency_ms(parameters, rows, dim, speed)
            ram += base
            planned.append(PlannedIndex(type_, stored, ram, disk, seconds, ms, memory is None or ram <= memory))
    return planned


def measure_machine(dim: int) -> MachineSpeed:
    """Try it, half a second long.

    Args:
        dim: length of the descriptors.
    """
    rows = np.random.default_rng(0).normal(size=(_PROBE_ROWS, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scan_ns: dict[Storage, float] = {}
    for storage in _STORED_BYTES:
        vectors = ExactVectors.from_descriptors([rows], dim, storage, sample=rows[:1000])
        scan_ns[storage] = _least_seconds(lambda: vectors.search(rows[:1], 10)) / rows.size * 1e9  # noqa: B023
    square = rows.ravel()[: _PROBE_SIDE**2].reshape(_PROBE_SIDE, _PROBE_SIDE)
    seconds = _least_seconds(lambda: square @ square)
    return MachineSpeed(scan_ns, 2 * _PROBE_SIDE**3 / seconds / 1e9)


def _least_seconds(work: object, times: int = 5) -> float:
    assert callable(work)
    least = math.inf
    for _ in range(times):
        started = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - started)
    return least


def _build_seconds(parameters: CandidateParameters, rows: int, dim: int, speed: MachineSpeed) -> float:
    if parameters.lists is None:
        return rows * _GRAPH_BUILD_VISITS * dim * speed.scan_ns["fp16"] * 1e-9
    trained = training_rows(parameters, rows) * _TRAINING_ROUNDS
    return 2.0 * (trained + rows) * parameters.lists * dim / (speed.multiply_gflops * 1e9)


def _latency_ms(parameters: CandidateParameters, rows: int, dim: int, speed: MachineSpeed) -> float:
    half = speed.scan_ns["fp16"] * 1e-6
    if parameters.lists is None:
        return _GRAPH_VISITS * dim * half
    lists = parameters.lists * dim * speed.scan_ns["fp32"] * 1e-6
    share = memory_bytes(parameters, rows, dim) / (rows * dim * 2)
    reranked = 0 if parameters.type == "ivf" else _ASSUMED_RERANKED
    return lists + _ASSUMED_SHARE * rows * dim * half * min(1.0, share) + reranked * dim * half * 5
