"""What pairing needs to know of a million photos: where they were taken, which way they look, in which session."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from retrieval.geo import EARTH_RADIUS_M, unit_vectors
from retrieval.references.reference import Reference
from training.geopair.arrays import Float32Array, Float64Array, Int32Array
from training.geopair.errors import GeoPairError

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
                f"row {row} of the references lies nowhere: plane_m is {tuple(plane[row].tolist())}",
                remedy="Give finite metres",
                code="mixed_positions",
            )
        raise GeoPairError(
            f"distances cannot be told: reference {self.without_degrees!r} has no latitude and longitude, and "
            f"{self.without_metres!r} no plane metres",
            remedy="Give all references WGS84 degrees, or all of them plane metres",
            code="mixed_positions",
        )
