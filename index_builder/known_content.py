"""Descriptors that are stored already, by the content of their photos."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.describer import Describer
from retrieval.images import ImageLimits
from retrieval.place_index import REFERENCES_NAME, PlaceIndex
from retrieval.place_index_manifest import DescribingRecord
from retrieval.reference_table import read_references
from retrieval.vectors.exact import Storage

# Numpy does not tell zero bytes at the end from none, but all digests are 32 bytes long.
_DIGEST: Final = "S32"


@dataclass(frozen=True)
class KnownContent:
    """Which row of a version holds the descriptor of which bytes. Small enough to be sent to other machines.

    Attributes:
        version: of the place index.
        digests: (K,) of 32 bytes, the SHA-256 of photos, rising.
        rows: (K,) int64, of the version.
    """

    version: str
    digests: NDArray[np.bytes_]
    rows: NDArray[np.int64]

    def find(self, sha256: bytes) -> int | None:
        """The row that holds the descriptor of a photo with this digest, or None."""
        wanted = np.array(sha256, _DIGEST)
        place = int(np.searchsorted(self.digests, wanted))
        if place == len(self.digests) or self.digests[place] != wanted:
            return None
        return int(self.rows[place])


def describing_record(describer: Describer, limits: ImageLimits) -> DescribingRecord:
    """What a descriptor depends on beside its photo and the bundle."""
    return DescribingRecord(precision=describer.precision, max_bytes=limits.max_bytes, max_pixels=limits.max_pixels)


def known_content(
    base: PlaceIndex, describer: Describer, limits: ImageLimits, storage: Storage, *, whitened: bool
) -> KnownContent | None:
    """What of a version may be taken over as if it had just been described, or None.

    Stored as fp32 a descriptor is what the describer gave. Stored as fp16 it is only good for fp16 again: the same bits
    come out. The steps of int8 and the directions of a whitening were chosen for the version, and another has its own.

    Args:
        base: a version.
        describer: of the new one.
        limits: of encoded photos.
        storage: of the new one.
        whitened: whether the new one is.
    """
    manifest = base.manifest
    same = manifest.bundle.fingerprint == describer.bundle.fingerprint
    exact = manifest.whitening is None and (
        manifest.storage == "fp32" or (manifest.storage == "fp16" == storage and not whitened)
    )
    if not (same and exact and manifest.describing == describing_record(describer, limits)):
        return None
    hashes = read_references(base.folder / REFERENCES_NAME)["content_sha256"]
    rows = np.flatnonzero(hashes.is_valid().to_numpy())
    digests = np.array([bytes.fromhex(text) for text in hashes.take(pa.array(rows)).to_pylist()], _DIGEST)
    digests, first = np.unique(digests, return_index=True)
    return KnownContent(base.version, digests, rows[first].astype(np.int64))
