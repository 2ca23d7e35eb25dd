"""GeoPairs: who is paired with whom, who may share a batch, and which photos are their negatives.

From the positions of geo-tagged photos alone (VG-SSL, WACV 2025, sections 1.3 and 1.4 of our specification), through a
spatial index: never a matrix of all photos against all.
"""

from training.geopair.arrays import Float32Array, Int64Array
from training.geopair.descriptors import Describe
from training.geopair.errors import GeoPairError
from training.geopair.geopairs import GeoPairs
from training.geopair.photo_table import PhotoTable
from training.geopair.plan import EpochPlan, PairBatch

__all__ = [
    "Describe",
    "EpochPlan",
    "Float32Array",
    "GeoPairError",
    "GeoPairs",
    "Int64Array",
    "PairBatch",
    "PhotoTable",
]
