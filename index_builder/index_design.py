"""What type of index: what is wanted, what each type would cost here, and building or choosing one.

Sizes and times are predicted from the number of rows (`plan_indexes`); ``--type auto`` measures on a sample instead
(`choose_parameters`).
"""

import math
import time
from dataclasses import dataclass, replace
from timeit import repeat
from typing import Final

import numpy as np

from index_builder.quality import hold_out, tune
from retrieval.errors import ParameterError
from retrieval.index.sampling import drawn
from retrieval.index.vectors.candidates import (
    INDEX_TYPES,
    ApproximateType,
    CandidateParameters,
    Candidates,
    IndexType,
    StoredVectors,
    WantedType,
    code_parts_for,
)
from retrieval.index.vectors.exact import ExactVectors, Storage

# Four lists for each square root of a row: comparing a query with the lists costs about as much as looking into 25 of
# them, and k-means still ends in minutes at 10 million rows.
_LISTS_PER_ROOT: Final = 4.0
_MOST_LISTS: Final = 65_536
_ROWS_PER_LIST: Final = 39
_NEIGHBOURS: Final = 32
_NUMBERS_PER_CODE_PART: Final = 4
_FIRST_EFFORT: Final = 8
_FIRST_GRAPH_EFFORT: Final = 32
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
_COPY_ROWS: Final = 8192

# With fewer rows nothing is gained that anyone would notice.
_FEWEST_ROWS: Final = 5_000
_TRIAL_ROWS: Final = 30_000
_TIMED: Final = 9

# How a graph's query time grows with the rows at the same recall, as a power.
_GRAPH_GROWTH: Final = 0.75

STORED_BYTES: Final[dict[Storage, int]] = {"fp32": 4, "fp16": 2, "int8": 1}
_TRIED: Final[tuple[ApproximateType, ...]] = ("ivf", "ivf-int8", "ivf-pq-fast", "hnsw")
_PLANNED_STORAGE: Final[tuple[Storage, ...]] = ("fp16",)
_FIRST_RERANK: Final[dict[ApproximateType, int]] = {"ivf": 1, "ivf-int8": 2, "ivf-pq": 10, "ivf-pq-fast": 10, "hnsw": 1}


@dataclass(frozen=True, slots=True)
class IndexDesign:
    """What index is wanted.

    Attributes:
        storage: of the descriptors; fp16 halves the memory and changes no recall that we could measure.
        type: of index, or ``auto`` to try several and take what fits best.
        recall: share of the ten best rows of exact search that an approximate index must return.
        latency_ms: of one query; ``auto`` takes exact search where it is as quick as this.
        memory_bytes: that the vectors may take in RAM, or None.
        calibrate: whether confidence and radius are fitted to the index's own references, where that is possible.
        local_features: whether photos' local features are stored, for re-ranking; None: as in the version before.
    """

    storage: Storage = "fp16"
    type: WantedType = "exact"
    recall: float = 0.95
    latency_ms: float = 20.0
    memory_bytes: int | None = None
    calibrate: bool = True
    local_features: bool | None = None


def parameters_for(type_: ApproximateType, rows: int, dim: int) -> CandidateParameters:
    """The parameters that an index of a type begins with, before its effort is tuned.

    Args:
        type_: of index.
        rows: N.
        dim: length of the stored descriptors.
    """
    if type_ == "hnsw":
        return CandidateParameters(type=type_, neighbours=_NEIGHBOURS, effort=_FIRST_GRAPH_EFFORT)
    lists = lists_for(rows)
    parts = code_parts_for(dim, _NUMBERS_PER_CODE_PART) if type_ in ("ivf-pq", "ivf-pq-fast") else None
    return CandidateParameters(
        type=type_, lists=lists, code_parts=parts, effort=min(_FIRST_EFFORT, lists), rerank=_FIRST_RERANK[type_]
    )


def lists_for(rows: int) -> int:
    """How many inverted lists so many rows are sorted into: a power of two near 4·√N, each trained on 39 rows."""
    wanted = min(_LISTS_PER_ROOT * math.sqrt(rows), rows / _ROWS_PER_LIST, _MOST_LISTS)
    return max(1, 1 << round(math.log2(max(1.0, wanted))))


def training_rows(parameters: CandidateParameters, rows: int) -> int:
    """How many rows the index is trained on."""
    if parameters.lists is None:
        return min(rows, 20_000)
    return min(rows, max(parameters.lists * _ROWS_PER_LIST, 20_000))


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


def plan_indexes(rows: int, dim: int, speed: MachineSpeed, memory: int | None = None) -> list[PlannedIndex]:
    """What each type of index would be for so many references: exact search with each storage, the others with fp16.

    Args:
        rows: N.
        dim: length of the stored descriptors.
        speed: of the machine that builds and serves.
        memory: bytes there are, or None.
    """
    base = rows * (_TABLE_BYTES + _BLOCKS_BYTES)
    planned = []
    for type_ in INDEX_TYPES:
        for stored in STORED_BYTES if type_ == "exact" else _PLANNED_STORAGE:
            exact_bytes = rows * dim * STORED_BYTES[stored]
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
    """Measure it, for half a second.

    Args:
        dim: length of the descriptors.
    """
    rows = np.random.default_rng(0).normal(size=(_PROBE_ROWS, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    scan_ns: dict[Storage, float] = {}
    for storage in STORED_BYTES:
        vectors = ExactVectors.from_descriptors([rows], dim, storage, sample=rows[:1000])
        scan_ns[storage] = min(repeat(lambda: vectors.search(rows[:1], 10), number=1)) / rows.size * 1e9  # noqa: B023
    square = rows.ravel()[: _PROBE_SIDE**2].reshape(_PROBE_SIDE, _PROBE_SIDE)
    seconds = min(repeat(lambda: square @ square, number=1))
    return MachineSpeed(scan_ns, 2 * _PROBE_SIDE**3 / seconds / 1e9)


def build_candidates(exact: ExactVectors, parameters: CandidateParameters) -> Candidates:
    """Train on a sample of the stored descriptors, and add all of them.

    Raises:
        ParameterError: parameters that do not fit the rows.
    """
    sample = exact.descriptors(drawn(exact.count, training_rows(parameters, exact.count)))
    candidates = Candidates.train(parameters, sample)
    for start in range(0, exact.count, _COPY_ROWS):
        candidates.add(exact.descriptors(np.arange(start, min(start + _COPY_ROWS, exact.count))))
    return candidates


@dataclass(frozen=True, slots=True)
class Choice:
    """A type of index that was considered.

    Attributes:
        type: of index.
        recall: recall@10 against exact search, measured on the sample; 1 for exact search.
        latency_ms: of one query on this machine; for approximate types worked out from the sample for all rows.
        memory_bytes: in RAM, for all rows.
        verdict: why it was taken or not, a few words.
    """

    type: IndexType
    recall: float
    latency_ms: float
    memory_bytes: int
    verdict: str


def choose_parameters(
    exact: ExactVectors, wanted: WantedType, design: IndexDesign
) -> tuple[CandidateParameters | None, list[Choice]]:
    """The parameters to build with, None for exact search; and what was considered on the way.

    Exact search is taken where it is quick enough: it is always right, and has nothing to tune. Else the quickest type
    that reaches the recall on a sample of the references and fits into the memory.

    Args:
        exact: all stored descriptors.
        wanted: a type, or ``auto``.
        design: the goals.

    Raises:
        ParameterError: nothing fits into the memory.
    """
    rows, dim = exact.count, exact.dim
    if wanted == "exact":
        return None, []
    if wanted != "auto":
        return parameters_for(wanted, rows, dim), []
    limit = math.inf if design.memory_bytes is None else design.memory_bytes
    first = Choice("exact", 1.0, _exact_ms(exact), rows * exact.bytes_per_row, "")
    if first.memory_bytes <= limit and (rows < _FEWEST_ROWS or first.latency_ms <= design.latency_ms):
        return None, [replace(first, verdict="taken: quick enough, and always right")]
    return _choose_by_trial(exact, first, design, limit)


def query_cost(tuned: CandidateParameters, rows: int, dim: int) -> float:
    """What a query costs on so many rows, in numbers compared, if the same share of the lists is looked at.

    That is careful: the more lists, the smaller the share that holds the nearest rows. A graph's steps grow with the
    logarithm, but for the same recall more of them are wanted: from 30,000 to a million rows of 512 numbers it took 15
    times as long, rows to the power of 0.77.
    """
    if tuned.lists is None:
        return float(rows**_GRAPH_GROWTH)
    share = tuned.effort / tuned.lists
    return dim * (lists_for(rows) + share * rows + 10 * tuned.rerank)


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


def _choose_by_trial(
    exact: ExactVectors, first: Choice, design: IndexDesign, limit: float
) -> tuple[CandidateParameters | None, list[Choice]]:
    tried = [first, *(_try(type_, exact, design) for type_ in _TRIED)]
    fitting = [one for one in tried if one.recall >= design.recall and one.memory_bytes <= limit]
    if not fitting:
        least = min(tried, key=lambda one: one.memory_bytes)
        raise ParameterError(
            f"no type of index fits into {limit / 1e9:.3g} GB with a recall of {design.recall:.0%}: "
            f"{least.type} needs {least.memory_bytes / 1e9:.3g} GB and reached {least.recall:.1%}",
            remedy="Give more memory, adapt to fewer numbers (--dim), or ask for less recall",
        )
    taken = min(fitting, key=lambda one: one.latency_ms)
    judged = [replace(one, verdict=_verdict(one, taken, design, limit)) for one in tried]
    if taken.type == "exact":
        return None, judged
    return parameters_for(taken.type, exact.count, exact.dim), judged


def _try(type_: ApproximateType, exact: ExactVectors, design: IndexDesign) -> Choice:
    """Build a type on a sample and tune it."""
    sample = drawn(exact.count, _TRIAL_ROWS)
    some = exact.empty_alike()
    some.add(exact.descriptors(sample))
    candidates = build_candidates(some, parameters_for(type_, some.count, some.dim))
    tuned, report = tune(StoredVectors(some, candidates), hold_out(some), design.recall)
    growth = query_cost(tuned, exact.count, exact.dim) / query_cost(tuned, some.count, some.dim)
    final = parameters_for(type_, exact.count, exact.dim)
    return Choice(type_, report.at_10, report.milliseconds * growth, memory_bytes(final, exact.count, exact.dim), "")


def _verdict(one: Choice, taken: Choice, design: IndexDesign, limit: float) -> str:
    if one is taken:
        return "taken: the quickest that meets the goals"
    if one.recall < design.recall:
        return f"recall below {design.recall:.0%}"
    if one.memory_bytes > limit:
        return f"needs more than {limit / 1e9:.3g} GB"
    return "slower"


def _exact_ms(exact: ExactVectors) -> float:
    queries = exact.descriptors(drawn(exact.count, _TIMED))
    times = []
    for query in queries:
        started = time.perf_counter()
        exact.search(query[None], 10)
        times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3
