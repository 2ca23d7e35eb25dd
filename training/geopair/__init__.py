"""GeoPairs: which photos are pairs, which pairs may share a batch, and which photos are their negatives.

From the positions of geo-tagged photos alone (VG-SSL, WACV 2025, sections 1.3 and 1.4 of our specification), through a
spatial index: never a matrix of all photos against all.
"""

from training.geopair.batches import EpochBatches, PairBatch
from training.geopair.geopairs import GeoPairs
from training.geopair.photo_table import Describe, Float32Array, GeoPairError, Int64Array, PhotoTable

__all__ = [
    "Describe",
    "EpochBatches",
    "Float32Array",
    "GeoPairError",
    "GeoPairs",
    "Int64Array",
    "PairBatch",
    "PhotoTable",
]
