"""One version's collection in Milvus, the types of index that Milvus has, and what is known of each.

Parameters are those of Milvus's own documentation (v2.6, "In-memory index", "GPU index"). Milvus builds one index for
each segment, of about 1 GB by default, so lists are sized for a segment and not for the whole collection.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from retrieval.describer import Descriptors
from retrieval.errors import ParameterError
from retrieval.geo import Float64Array
from retrieval.index.manifest import RecallReport
from retrieval.index.milvus.connection import MilvusConnection

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
_SEGMENT_ROWS: Final = 500_000
_MOST_LISTS: Final = 4_096
_ROWS_A_LIST: Final = 39  # fewer, and k-means complains
_MOST_ROWS: Final = 16_384
_MOST_GPU_ROWS: Final = 1_024

# Milvus takes numbers of a descriptor together, four here, into one byte.
_PQ_NUMBERS: Final = 4
SEARCHING_NAME: Final = "searching.json"
StoredAs = Literal["fp32", "fp16"]
VECTOR: Final = "vector"
TEXT_BYTES: Final = 65_535

# What Milvus gives at once: rows of one search or query, and bytes of an answer (100 MB by default).
MOST_ROWS: Final = 16_384
_ANSWER_BYTES: Final = 32_000_000
_ROWS_AT_ONCE: Final = 1_000
MILVUS_TYPES: Final[tuple[MilvusType, ...]] = get_args(MilvusType)
BuildParameters = dict[str, int | float | str | bool]


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


class MilvusSearching(BaseModel):
    """How the collection of a version is searched.

    Attributes:
        stored: how descriptors are stored.
        index_type: Milvus's name of it.
        build: its parameters.
        effort: of a search, see `MilvusTypeFacts`; None where search is exact.
        recall: of the collection against exact search over the same descriptors; None where search is exact.
        pushed_from: where the place index that was pushed holds the bundle, see `PlaceIndex.bundle_holder`; None where
            it holds none, or that is unknown.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stored: StoredAs = "fp32"
    index_type: MilvusType = "FLAT"
    build: BuildParameters = {}
    effort: int | None = None
    recall: RecallReport | None = None
    pushed_from: str | None = None


@dataclass(frozen=True, slots=True)
class MilvusRow:
    """A reference as Milvus gave it.

    Attributes:
        row: in the place index.
        lat, lon: degrees.
        record: the rest of the reference's columns, by name, its id among them.
        descriptor: (d,) float32 as stored, or None where it was not asked for.
        score: of the search that found it; 0 where it was not searched for.
    """

    row: int
    lat: float
    lon: float
    record: dict[str, Any]
    descriptor: Descriptors | None = None
    score: float = 0.0


class MilvusCollection:
    """The rows of a version.

    Args:
        connection: to the Milvus.
        name: of the collection.
        dim: numbers of a stored descriptor.
        searching: how it is searched.
    """

    def __init__(self, connection: MilvusConnection, name: str, dim: int, searching: MilvusSearching) -> None:
        self.connection = connection
        self.name = name
        self.dim = dim
        self.searching = searching

    def most_rows(self, *, descriptors: bool) -> int:
        """How many rows one query may bring, within what Milvus allows of rows and bytes."""
        allowed = min(MOST_ROWS, FACTS[self.searching.index_type].most_k)
        return max(1, min(allowed, _ANSWER_BYTES // self._row_bytes(descriptors)))

    def search(
        self, queries: Descriptors, k: int, filter_: str = "", effort: int | None = None, *, descriptors: bool
    ) -> list[list[MilvusRow]]:
        """The k rows that Milvus finds most like each query, best first; fewer where there are fewer.

        Args:
            queries: (Q, d) float32.
            k: 1 to `most_rows`.
            filter_: an expression, "" for none.
            effort: instead of the one that the collection was tuned to.
            descriptors: whether to bring those of the rows.

        Raises:
            StoreUnavailableError: Milvus cannot be asked.
        """
        searching = self.searching
        parameters = search_parameters(searching.index_type, searching.effort if effort is None else effort, k)
        number = np.float32 if searching.stored == "fp32" else np.float16
        found: list[list[MilvusRow]] = []
        at_once = max(1, _ANSWER_BYTES // (k * self._row_bytes(descriptors)))
        for start in range(0, len(queries), at_once):
            with self.connection.failures():
                answers = self.connection.client.search(
                    self.name,
                    data=list(np.ascontiguousarray(queries[start : start + at_once], number)),
                    anns_field=VECTOR,
                    filter=filter_,
                    limit=k,
                    output_fields=self._fields(descriptors),
                    search_params={"metric_type": FACTS[searching.index_type].metric, "params": parameters},
                    timeout=self.connection.timeout_s,
                )
            found += [[_row_of(hit["entity"], float(hit["distance"])) for hit in hits] for hits in answers]
        return found

    def rows(self, wanted: Sequence[int] | NDArray[np.int64], *, descriptors: bool) -> dict[int, MilvusRow]:
        """Rows by their numbers."""
        found: dict[int, MilvusRow] = {}
        at_once = max(1, min(_ROWS_AT_ONCE, _ANSWER_BYTES // self._row_bytes(descriptors)))
        for start in range(0, len(wanted), at_once):
            some = [int(row) for row in wanted[start : start + at_once]]
            for one in self._query(f"row in {some}", len(some), self._fields(descriptors)):
                found[one["row"]] = _row_of(one)
        return found

    def scan(self, filter_: str = "") -> Iterator[tuple[NDArray[np.int64], Float64Array, Float64Array]]:
        """Row numbers, latitudes and longitudes of all rows that pass a filter, in pieces of any order."""
        with self.connection.failures():
            pages = self.connection.client.query_iterator(
                self.name,
                batch_size=MOST_ROWS,
                filter=filter_,
                output_fields=["row", "lat", "lon"],
                timeout=self.connection.timeout_s,
            )
            try:
                while page := pages.next():
                    yield (
                        np.array([one["row"] for one in page], np.int64),
                        np.array([one["lat"] for one in page], np.float64),
                        np.array([one["lon"] for one in page], np.float64),
                    )
            finally:
                pages.close()

    def count(self, filter_: str = "", *, strong: bool = False) -> int:
        """How many rows pass a filter."""
        given = {"consistency_level": "Strong"} if strong else {}
        with self.connection.failures():
            found = self.connection.client.query(
                self.name, filter=filter_, output_fields=["count(*)"], timeout=self.connection.timeout_s, **given
            )
        return int(found[0]["count(*)"])

    def rows_where(self, filter_: str) -> list[MilvusRow]:
        """The rows that pass a filter which few pass."""
        return [_row_of(one) for one in self._query(filter_, MOST_ROWS, self._fields(False))]

    def _query(self, filter_: str, limit: int, fields: list[str]) -> list[dict[str, Any]]:
        with self.connection.failures():
            return list(
                self.connection.client.query(
                    self.name, filter=filter_, limit=limit, output_fields=fields, timeout=self.connection.timeout_s
                )
            )

    def _row_bytes(self, descriptors: bool) -> int:
        return 1_000 + (4 * self.dim if descriptors else 0)

    @staticmethod
    def _fields(descriptors: bool) -> list[str]:
        return ["row", "lat", "lon", "id", "record", *([VECTOR] if descriptors else [])]


def text(value: str) -> str:
    """A string as a literal of a filter expression."""
    return json.dumps(value, ensure_ascii=False)


def _row_of(entity: dict[str, Any], score: float = 0.0) -> MilvusRow:
    vector = entity.get(VECTOR)
    if isinstance(vector, list) and len(vector) == 1 and isinstance(vector[0], bytes):
        vector = np.frombuffer(vector[0], np.float16)  # as pymilvus gives halves
    elif isinstance(vector, bytes):
        vector = np.frombuffer(vector, np.float16)
    record: dict[str, Any] = json.loads(entity["record"])
    return MilvusRow(
        row=int(entity["row"]),
        lat=float(entity["lat"]),
        lon=float(entity["lon"]),
        record=record | {"id": entity["id"]},
        descriptor=None if vector is None else np.asarray(vector, np.float32),
        score=score,
    )
