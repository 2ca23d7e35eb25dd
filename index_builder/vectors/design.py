"""What index is wanted, and the parameters that follow from how many references there are."""

import math
from dataclasses import dataclass
from typing import Final

from retrieval.vectors.candidates import CandidateParameters, code_parts_for
from retrieval.vectors.exact import Storage
from retrieval.vectors.index_types import ApproximateType, WantedType

# Four lists for each square root of a row: comparing a query with the lists costs about as much as looking into 25 of
# them, and k-means still ends in minutes at 10 million rows.
_LISTS_PER_ROOT: Final = 4.0
_MOST_LISTS: Final = 65_536
_ROWS_PER_LIST: Final = 39
_NEIGHBOURS: Final = 32
_NUMBERS_PER_CODE_PART: Final = 4
_FIRST_EFFORT: Final = 8
_FIRST_GRAPH_EFFORT: Final = 32
_FIRST_RERANK: Final[dict[ApproximateType, int]] = {
    "ivf": 1,
    "ivf-int8": 2,
    "ivf-pq": 10,
    "ivf-pq-fast": 10,
    "hnsw": 1,
}


@dataclass(frozen=True, slots=True)
class IndexDesign:
    """What index is wanted.

    Attributes:
        storage: of the descriptors; fp16 halves the memory and changes no recall that we could measure.
        type: of index, or ``auto`` to try several and take what fits best.
        recall: share of the ten best rows of exact search that an approximate index must return.
        latency_ms: of one query; ``auto`` takes exact search where it is as quick as this.
        memory_bytes: that the vectors may take in RAM, or None.
        whiten: to how many numbers descriptors are whitened, 0 for not at all.
        calibrate: whether confidence and radius are fitted to the index's own references, where that is possible.
        local_features: whether photos' local features are stored, for re-ranking; None: as in the version before.
    """

    storage: Storage = "fp16"
    type: WantedType = "exact"
    recall: float = 0.95
    latency_ms: float = 20.0
    memory_bytes: int | None = None
    whiten: int = 0
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
