"""Photos of known position that the index does not hold: they show how it does on what it was not made from."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder.held_out import (
    PAUSE_S,
    UNKNOWN,
    Float32Array,
    HeldOutMatches,
    Int64Array,
    Mask,
    NearPairs,
    ReferenceIndex,
    TakenWhen,
    search_allowed,
    time_blocks,
)
from retrieval.artefact import verify_files
from retrieval.describer import Descriptors
from retrieval.errors import ParameterError, PlaceIndexError
from retrieval.geo import Float64Array
from retrieval.place_index import CALIBRATION_PHOTOS_NAME
from retrieval.place_index_manifest import PlaceIndexManifest
from retrieval.references.reference import Reference

_log = logging.getLogger("sightfix.index")

_DESCRIPTOR: Final = "descriptor"

# A photo that was described elsewhere and stored in fewer bits differs by less than this from what it is a copy of.
_COPY: Final = 3e-3
# Positions of one photo in two lists.
_SAME_PLACE_M: Final = 1.0
_PAIRS_AT_ONCE: Final = 4096


@dataclass(frozen=True)
class OutsidePhotos:
    """Photos whose position is known, to be localized by an index that does not hold them.

    Attributes:
        descriptors: (Q, d) float32, unit rows, as the index stores them.
        lat, lon: (Q,) degrees.
        sessions: Q names, None where there is none.
        seconds: (Q,) float64, when they were taken, of the epoch; NaN where nothing is known.
    """

    descriptors: Float32Array
    lat: Float64Array
    lon: Float64Array
    sessions: Sequence[str | None]
    seconds: Float64Array

    @classmethod
    def from_references(cls, references: Sequence[Reference], descriptors: Descriptors) -> "OutsidePhotos":
        """Photos that were described.

        Raises:
            ParameterError: one has no position in degrees.
        """
        positions = [reference.position for reference in references]
        places = [position for position in positions if position is not None]
        if len(places) != len(positions):
            raise ParameterError("a photo has no position in degrees", remedy="Give geo-tagged photos")
        taken = [reference.captured_at for reference in references]
        return cls(
            descriptors,
            np.array([place.lat for place in places]),
            np.array([place.lon for place in places]),
            [reference.session or None for reference in references],
            np.array([np.nan if at is None else at.timestamp() for at in taken]),
        )

    @property
    def count(self) -> int:
        """Number of photos."""
        return len(self.descriptors)

    def take(self, places: Int64Array) -> "OutsidePhotos":
        """Some of them."""
        sessions = [self.sessions[place] for place in places]
        return OutsidePhotos(
            self.descriptors[places], self.lat[places], self.lon[places], sessions, self.seconds[places]
        )

    def write(self, path: Path) -> None:
        """Write them to a Parquet file."""
        values = pa.array(np.ascontiguousarray(self.descriptors, np.float32).ravel())
        columns = {
            "lat": pa.array(self.lat, pa.float64()),
            "lon": pa.array(self.lon, pa.float64()),
            "session": pa.array(self.sessions, pa.string()),
            "seconds": pa.array(self.seconds, pa.float64()),
            _DESCRIPTOR: pa.FixedSizeListArray.from_arrays(values, self.descriptors.shape[1]),
        }
        pq.write_table(pa.table(columns), path, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> "OutsidePhotos":
        """Read what `write` wrote."""
        table = pq.read_table(path).combine_chunks()
        rows = table[_DESCRIPTOR].combine_chunks()
        descriptors = np.asarray(rows.flatten(), np.float32).reshape(len(rows), -1)
        lat, lon, seconds = (np.asarray(table[name], np.float64) for name in ("lat", "lon", "seconds"))
        return cls(descriptors, lat, lon, table["session"].to_pylist(), seconds)

    @property
    def occasions(self) -> Int64Array:
        """(Q,) int64, which photos were taken on the same occasion: by session, else by pauses of half an hour."""
        number = {name: place for place, name in enumerate(sorted({name for name in self.sessions if name}))}
        blocks = time_blocks(self.seconds)
        told = [
            number[name] if name else len(number) + 1 + int(block)
            for name, block in zip(self.sessions, blocks, strict=True)
        ]
        return np.unique(np.array(told, np.int64), return_inverse=True)[1].ravel()


def calibration_photos_of(version: Path, fingerprint: str) -> OutsidePhotos | None:
    """What a version was given to be calibrated on, not whitened; read without opening the rest of it.

    Args:
        version: its folder.
        fingerprint: of the bundle that they must have been described by.

    Returns:
        None where it was given nothing, and where that is damaged or another bundle described it, which is logged.
    """
    try:
        manifest = PlaceIndexManifest.read(version, PlaceIndexError)
        if not manifest.calibration_photos:
            return None
        record = {CALIBRATION_PHOTOS_NAME: manifest.files[CALIBRATION_PHOTOS_NAME]}
        verify_files(version, record, error_type=PlaceIndexError)
    except (PlaceIndexError, KeyError) as error:
        _log.warning("whether %s was calibrated on photos cannot be told: %s", version, error)
        return None
    if manifest.bundle.fingerprint == fingerprint:
        return OutsidePhotos.read(version / CALIBRATION_PHOTOS_NAME)
    _log.warning(
        "%s was calibrated on %d photos that another bundle described; give them again: sightfix index calibrate",
        version,
        manifest.calibration_photos,
    )
    return None


@dataclass(frozen=True)
class OutsideSearch:
    """Searches an index for photos that it does not hold, without what it holds of the same occasion.

    Left out are references of the photo's session, those taken within half an hour of it or of what was photographed in
    one go with it (no pause of half an hour), and copies of the photo.

    Args:
        index: where.
        photos: what for.
    """

    index: ReferenceIndex
    photos: OutsidePhotos
    _told: TakenWhen
    _session: Int64Array
    _from: Float64Array
    _until: Float64Array

    @classmethod
    def of(cls, index: ReferenceIndex, photos: OutsidePhotos) -> "OutsideSearch":
        """Read when the references were taken."""
        told = TakenWhen.of(index)
        # A session that the index does not know is known all the same, and no reference's.
        strange = len(told.number)
        session = [told.number.get(name, strange) if name else UNKNOWN for name in photos.sessions]
        block = time_blocks(photos.seconds)
        begun, ended = np.full(photos.count, np.nan), np.full(photos.count, np.nan)
        for one in np.unique(block[block >= 0]):
            taken = photos.seconds[block == one]
            begun[block == one], ended[block == one] = taken.min(), taken.max()
        return cls(index, photos, told, np.array(session, np.int64), begun - PAUSE_S, ended + PAUSE_S)

    def take(self, places: Int64Array) -> "OutsideSearch":
        """The same for some of the photos."""
        session, begun, ended = self._session[places], self._from[places], self._until[places]
        return OutsideSearch(self.index, self.photos.take(places), self._told, session, begun, ended)

    def search(self, k: int, away_m: float | None = None) -> HeldOutMatches:
        """Search exactly.

        Args:
            k: matches for each.
            away_m: leave out everything within these metres of the photo, too.
        """
        near = None if away_m is None else NearPairs.of(self.index, self.photos.lat, self.photos.lon, away_m)
        every = np.arange(self.photos.count)[:, None]

        def allowed(rows: Int64Array) -> Mask:
            mask = ~self._same_occasion(every, rows[None])
            if near is not None:
                near.clear(mask, rows)
            return mask

        return search_allowed(self.index, self.photos.descriptors, allowed, k, _COPY)

    def known(self, radius_m: float) -> Mask:
        """(Q,): whether the index holds a reference of another occasion within a radius of the photo, and no copy."""
        near = NearPairs.of(self.index, self.photos.lat, self.photos.lon, radius_m)
        counts = ~self._same_occasion(near.whose, near.rows) & ~self._copies(near)
        return np.bincount(near.whose[counts], minlength=self.photos.count) > 0

    def indexed_untold(self) -> Mask:
        """(Q,): whether the index holds the photo itself and nothing says which references were taken with it."""
        near = NearPairs.of(self.index, self.photos.lat, self.photos.lon, _SAME_PLACE_M)
        session, seconds = self._told.session[near.rows], self._told.seconds[near.rows]
        named = (self._session[near.whose] != UNKNOWN) & (session != UNKNOWN)
        timed = np.isfinite(self.photos.seconds[near.whose]) & np.isfinite(seconds)
        untold = self._copies(near) & ~named & ~timed
        return np.bincount(near.whose[untold], minlength=self.photos.count) > 0

    def _same_occasion(self, whose: Int64Array, rows: Int64Array) -> Mask:
        """Whether photos and rows, broadcast together, are known to be of one occasion."""
        own, theirs, taken = self._session[whose], self._told.session[rows], self._told.seconds[rows]
        # Times that nobody knows are not close to any.
        soon = (taken >= self._from[whose]) & (taken <= self._until[whose])
        return np.asarray(((own == theirs) & (own != UNKNOWN)) | soon)

    def _copies(self, near: NearPairs) -> Mask:
        """(P,): which of some pairs are the same photo."""
        found = np.zeros(len(near.rows), bool)
        for begin in range(0, len(near.rows), _PAIRS_AT_ONCE):
            some = slice(begin, begin + _PAIRS_AT_ONCE)
            wanted = self.photos.descriptors[near.whose[some]]
            alike = np.einsum("pd,pd->p", wanted, self.index.descriptors(near.rows[some]))
            found[some] = alike >= np.einsum("pd,pd->p", wanted, wanted) - _COPY
        return found
