"""What pairing needs to know of photos, a million if need be: positions, headings, sessions, and some descriptors."""

from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import SightfixError
from retrieval.geo import EARTH_RADIUS_M, unit_vectors
from retrieval.references.reference import Reference

BoolArray = NDArray[np.bool_]
Int64Array = NDArray[np.int64]
Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Describe = Callable[[Int64Array], Float32Array]
"""Rows of the photo table, (n,) ascending → (n, D) float32 descriptors by the net as it is now, unit rows."""


class GeoPairError(SightfixError):
    """Photos that make no pairs, or pairs that make no batch.

    Codes: ``mixed_positions``, ``too_few_references``, ``one_session``, ``no_pairs``, ``batch_too_small``,
    ``no_batches``, ``no_negatives``, ``bad_descriptors``.
    """

    default_code = "geopair"


UNKNOWN_SESSION = -1


@dataclass(frozen=True, eq=False)
class PhotoTable:
    """Photos as columns; row i is the i-th reference.

    Attributes:
        points: (N, 3) float64. Straight-line distance times `EARTH_RADIUS_M` is metres: points on the unit sphere, or
            (east, north, 0) / `EARTH_RADIUS_M` for data sets that give plane metres only.
        headings_deg: (N,) float32, clockwise from north; NaN where unknown.
        sessions: (N,) int32 codes; -1 where unknown. All unknown ones count as one and the same session.
    """

    points: Float64Array
    headings_deg: Float32Array
    sessions: Int32Array

    def __len__(self) -> int:
        return len(self.points)

    @classmethod
    def from_references(cls, references: Iterable[Reference]) -> "PhotoTable":
        """Read the columns in one pass over a stream; no row is kept.

        Args:
            references: all with degrees, or all with plane metres. Degrees are used where all have both.

        Raises:
            GeoPairError: some have degrees only and others plane metres only, or a row has neither
                (``mixed_positions``).
        """
        columns = _Columns()
        for reference in references:
            columns.append(reference)
        headings = np.frombuffer(columns.headings, np.float32).copy()
        sessions = np.frombuffer(columns.sessions, np.int32).copy()
        return cls(columns.points(), headings, sessions)


@dataclass
class _Columns:
    """Typed columns that grow row by row: 40 bytes a photo."""

    degrees: "array[float]" = field(default_factory=lambda: array("d"))
    metres: "array[float]" = field(default_factory=lambda: array("d"))
    headings: "array[float]" = field(default_factory=lambda: array("f"))
    sessions: "array[int]" = field(default_factory=lambda: array("i"))
    codes: dict[str, int] = field(default_factory=dict)
    without_degrees: str | None = None
    without_metres: str | None = None

    def append(self, reference: Reference) -> None:
        position, plane = reference.position, reference.plane_m
        if position is not None:
            self.degrees.extend((position.lat, position.lon))
        elif self.without_degrees is None:
            self.without_degrees = reference.id
        if plane is not None:
            self.metres.extend(plane)
        elif self.without_metres is None:
            self.without_metres = reference.id
        heading, session = reference.heading_deg, reference.session
        self.headings.append(float("nan") if heading is None else heading)
        self.sessions.append(UNKNOWN_SESSION if session is None else self.codes.setdefault(session, len(self.codes)))

    def points(self) -> Float64Array:
        if self.without_degrees is None:
            lat, lon = np.frombuffer(self.degrees, np.float64).reshape(-1, 2).T
            return np.ascontiguousarray(unit_vectors(lat, lon))
        if self.without_metres is None:
            plane = np.frombuffer(self.metres, np.float64).reshape(-1, 2)
            if np.isfinite(plane).all():
                return np.ascontiguousarray(np.pad(plane, ((0, 0), (0, 1))) / EARTH_RADIUS_M)
            row = int(np.flatnonzero(~np.isfinite(plane).all(axis=1))[0])
            raise GeoPairError(
                f"row {row} of the references has no position: plane_m is {tuple(plane[row].tolist())}",
                remedy="Give finite metres",
                code="mixed_positions",
            )
        raise GeoPairError(
            f"distances are unknown: reference {self.without_degrees!r} has no latitude and longitude, and "
            f"{self.without_metres!r} no plane metres",
            remedy="Give all references WGS84 degrees, or all of them plane metres",
            code="mixed_positions",
        )


class DescribedRows:
    """Descriptors of some rows of the table.

    Args:
        rows: (n,) ascending, distinct.
        descriptors: (n, D) float32, unit rows.
    """

    def __init__(self, rows: Int64Array, descriptors: Float32Array) -> None:
        self._rows = rows
        self._descriptors = descriptors

    def of(self, rows: Int64Array) -> Float32Array:
        """(m, D) descriptors of (m,) rows, each of which was described."""
        return self._descriptors[np.searchsorted(self._rows, rows)]


def describe_needed(describe: Describe, needed: Iterable[Int64Array]) -> DescribedRows:
    """Describe the union of some rows at once, each row once, in ascending order.

    Raises:
        GeoPairError: a descriptor is not finite (``bad_descriptors``).
        ValueError: `describe` gave an array of another shape.
    """
    rows = np.unique(np.concatenate([np.empty(0, np.int64), *needed]))
    descriptors = np.ascontiguousarray(describe(rows), np.float32)
    if descriptors.ndim != 2 or len(descriptors) != len(rows):
        raise ValueError(f"describe gave {descriptors.shape} for {len(rows)} rows")
    # A sum is finite only if all of its terms are; isfinite on the whole array would double its memory.
    if not np.isfinite(descriptors.sum(dtype=np.float64)):
        raise GeoPairError(
            f"the net gives descriptors that are not finite, among {len(rows)} photos described for mining",
            remedy="Lower optimiser.learning_rate, set training.clip_norm=1, or train in fp32",
            code="bad_descriptors",
        )
    return DescribedRows(rows, descriptors)
