"""The types of index that Milvus has, and what we know of each.

Parameters are those of Milvus's own documentation (v2.6, "In-memory index", "GPU index"). Milvus builds one index for
each segment, of about 1 GB by default, so lists are sized for a segment and not for the whole collection.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from retrieval.errors import ParameterError

MilvusType = Literal[
    "FLAT",
    "IVF_FLAT",
    "IVF_SQ8",
    "IVF_PQ",
    "HNSW",
    "DISKANN",
    "GPU_BRUTE_FORCE",
    "GPU_IVF_FLAT",
    "GPU_IVF_PQ",
    "GPU_CAGRA",
]
MILVUS_TYPES: Final[tuple[MilvusType, ...]] = get_args(MilvusType)

BuildParameters = dict[str, int | float | str | bool]

_SEGMENT_ROWS: Final = 500_000
_MOST_LISTS: Final = 4_096
_ROWS_A_LIST: Final = 39  # fewer, and k-means complains
_MOST_ROWS: Final = 16_384
_MOST_GPU_ROWS: Final = 1_024
# Milvus takes numbers of a descriptor together, four here, into one byte.
_PQ_NUMBERS: Final = 4


@dataclass(frozen=True, slots=True)
class MilvusTypeFacts:
    """What we know of a type.

    Attributes:
        effort: name of the search parameter that costs time and brings recall; None where search is exact.
        scores_are_cosines: whether what Milvus returns is a cosine with the descriptor itself, not with a code of it.
        metric: of the index. Unit descriptors are ordered alike by all of them, but graphs on a GPU lost recall with
            inner products (cuvs issue 841).
        most_k: how many rows one search may ask for.
        most_effort: beyond it nothing is gained; None where it is the number of lists.
    """

    effort: Literal["nprobe", "ef", "itopk_size", "search_list"] | None
    scores_are_cosines: bool
    metric: Literal["IP", "L2"] = "IP"
    most_k: int = _MOST_ROWS
    most_effort: int | None = None


FACTS: Final[Mapping[MilvusType, MilvusTypeFacts]] = {
    "FLAT": MilvusTypeFacts(None, True),
    "IVF_FLAT": MilvusTypeFacts("nprobe", True),
    "IVF_SQ8": MilvusTypeFacts("nprobe", False),
    "IVF_PQ": MilvusTypeFacts("nprobe", False),
    "HNSW": MilvusTypeFacts("ef", True, most_effort=2_048),
    "DISKANN": MilvusTypeFacts("search_list", True, most_effort=2_048),
    "GPU_BRUTE_FORCE": MilvusTypeFacts(None, True, most_k=_MOST_GPU_ROWS),
    "GPU_IVF_FLAT": MilvusTypeFacts("nprobe", True, most_k=_MOST_GPU_ROWS),
    "GPU_IVF_PQ": MilvusTypeFacts("nprobe", False, most_k=_MOST_GPU_ROWS),
    "GPU_CAGRA": MilvusTypeFacts("itopk_size", False, "L2", most_k=_MOST_GPU_ROWS, most_effort=512),
}


def check_milvus_type(name: str) -> MilvusType:
    """Return the name if Milvus has such a type.

    Raises:
        ParameterError: it has not, or we do not know how to search it.
    """
    for known in MILVUS_TYPES:
        if name.upper() == known:
            return known
    raise ParameterError(f"there is no Milvus index type {name!r}", remedy=f"Choose among {', '.join(MILVUS_TYPES)}")


def build_parameters(
    type_: MilvusType, count: int, dim: int, given: Mapping[str, Any] | None = None
) -> BuildParameters:
    """Parameters to build with.

    Args:
        type_: of index.
        count: rows of the collection.
        dim: numbers of a descriptor.
        given: the user's own, which go first.
    """
    parameters: BuildParameters = {}
    if "IVF" in type_:
        rows = min(count, _SEGMENT_ROWS)
        parameters["nlist"] = int(max(1, min(_MOST_LISTS, round(4 * rows**0.5), rows // _ROWS_A_LIST)))
    if type_.endswith("_PQ"):
        parameters["m"] = dim // _PQ_NUMBERS if dim % _PQ_NUMBERS == 0 else dim
        parameters["nbits"] = 8
    if type_ == "HNSW":
        parameters |= {"M": 16, "efConstruction": 200}
    if type_ == "GPU_CAGRA":
        parameters |= {"intermediate_graph_degree": 128, "graph_degree": 64}
    return parameters | dict(given or {})


def most_effort(type_: MilvusType, build: BuildParameters) -> int:
    """The effort beyond which nothing is gained."""
    return FACTS[type_].most_effort or int(build["nlist"])


def search_parameters(type_: MilvusType, effort: int | None, k: int) -> dict[str, int]:
    """Parameters of one search; graphs must be walked for at least as many candidates as are wanted."""
    name = FACTS[type_].effort
    if name is None or effort is None:
        return {}
    return {name: effort if name == "nprobe" else max(effort, k)}
