"""Photos of known position that the index does not hold: they show how it does on what it was not made from."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
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
    row_blocks,
    search_allowed,
    time_blocks,
)
from retrieval.describer import Descriptors
from retrieval.errors import ParameterError
from retrieval.geo import Float64Array
from retrieval.place_index import CALIBRATION_PHOTOS_NAME, PlaceIndex
from retrieval.references.reference import Reference

_log = logging.getLogger("sightfix.index")

_DESCRIPTOR: Final = "descriptor"


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


def calibration_photos_for(fingerprint: str, before: PlaceIndex) -> OutsidePhotos | None:
    """What an index was given to be calibrated on, not whitened.

    Args:
        fingerprint: of the bundle that they must have been described by.
        before: the index.

    Returns:
        None where it was given nothing, or where another bundle described it, which is logged.
    """
    count = before.manifest.calibration_photos
    if not count:
        return None
    if before.manifest.bundle.fingerprint == fingerprint:
        return OutsidePhotos.read(before.folder / CALIBRATION_PHOTOS_NAME)
    _log.warning(
        "%s was calibrated on %d photos that another bundle described; give them again: sightfix index calibrate",
        before.where,
        count,
    )
    return None


@dataclass(frozen=True)
class OutsideSearch:
    """Searches an index for photos that it does not hold, without what it holds of the same occasion.

    Left out are references of the photo's session; where one of both has no session, those taken within half an hour of
    it; and copies of the photo.

    Args:
        index: where.
        photos: what for.
    """

    index: ReferenceIndex
    photos: OutsidePhotos
    _told: TakenWhen = field(init=False)
    _session: Int64Array = field(init=False)

    def __post_init__(self) -> None:
        told = TakenWhen.of(self.index)
        # A session that the index does not know is known all the same, and no reference's.
        strange = len(told.number)
        session = [told.number.get(name, strange) if name else UNKNOWN for name in self.photos.sessions]
        object.__setattr__(self, "_told", told)
        object.__setattr__(self, "_session", np.array(session, np.int64))

    def search(self, k: int, away_m: float | None = None) -> HeldOutMatches:
        """Search exactly.

        Args:
            k: matches for each.
            away_m: leave out everything within these metres of the photo, too.
        """
        near = None if away_m is None else NearPairs.of(self.index, self.photos.lat, self.photos.lon, away_m)

        def allowed(rows: Int64Array) -> Mask:
            mask = self._others(rows)
            if near is not None:
                near.clear(mask, rows)
            return mask

        return search_allowed(self.index, self.photos.descriptors, allowed, k)

    def known(self, radius_m: float) -> Mask:
        """(Q,): whether the index holds a reference of another occasion within a radius of the photo."""
        near = NearPairs.of(self.index, self.photos.lat, self.photos.lon, radius_m)
        found = np.zeros(len(self._session), bool)
        for rows in row_blocks(self.index.count):
            mask = np.zeros((len(self._session), len(rows)), bool)
            begin, end = np.searchsorted(near.rows, [rows[0], rows[-1] + 1])
            mask[near.whose[begin:end], near.rows[begin:end] - rows[0]] = True
            if end > begin:
                found |= (mask & self._others(rows)).any(axis=1)
        return found

    def _others(self, rows: Int64Array) -> Mask:
        own, theirs = self._session[:, None], self._told.session[rows][None]
        named = (own != UNKNOWN) & (theirs != UNKNOWN)
        soon = np.abs(self.photos.seconds[:, None] - self._told.seconds[rows][None]) <= PAUSE_S
        return np.asarray(~np.where(named, own == theirs, soon))
