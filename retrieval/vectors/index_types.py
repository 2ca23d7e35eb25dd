"""The types of index, by name."""

from typing import Final, Literal, get_args

ApproximateType = Literal["ivf", "ivf-int8", "ivf-pq", "ivf-pq-fast", "hnsw"]
IndexType = Literal["exact", "ivf", "ivf-int8", "ivf-pq", "ivf-pq-fast", "hnsw"]
WantedType = IndexType | Literal["auto"]

INDEX_TYPES: Final[tuple[IndexType, ...]] = get_args(IndexType)
