"""One geo-tagged photo of a reference database, and the protocol of everything that yields such rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, runtime_checkable

from retrieval.geo import Position


@dataclass(frozen=True, slots=True)
class Reference:
    """A geo-tagged photo: one row of a reference database.

    Attributes:
        id: unique and stable within its database; by default the path relative to the database's root, with ``/``.
        path: where the photo lies.
        position: WGS84 degrees, or None for data sets that give plane metres only.
        plane_m: (east, north) in metres in the data set's own plane (UTM, or a frame index turned into metres), or
            None. Field evaluators measure in this plane.
        altitude_m: metres above the reference of the source (EXIF: sea level), or None.
        heading_deg: direction of view, degrees clockwise from true north in [0, 360), or None.
        captured_at: when the photo was taken; naive when the source gives no offset from UTC; None when unknown.
        session: the drive or walk it belongs to (photos of one session must not be split), or None.
        metadata: further columns of the source, kept as text.
    """

    id: str
    path: Path
    position: Position | None
    plane_m: tuple[float, float] | None = None
    altitude_m: float | None = None
    heading_deg: float | None = None
    captured_at: datetime | None = None
    session: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SkippedPhoto:
    """A photo that a reader left out, and why (for example "no GPS position in its EXIF")."""

    path: Path
    reason: str


@runtime_checkable
class ReferenceSource(Protocol):
    """An opened reference database. Iterating yields `Reference` rows one by one, in a stable order, never a list.

    Attributes:
        spec: the spec string that opens it again.
        root: the folder below which its photos lie.
        skipped: photos left out in the latest iteration, with the reason.
    """

    spec: str
    root: Path
    skipped: list[SkippedPhoto]

    def __iter__(self) -> Iterator[Reference]:
        """Yield the rows.

        Raises:
            ReferenceDataError: a row or file that cannot be read, with file, row and value.
        """
        ...

    def __len__(self) -> int:
        """How many rows to expect, cheaply known (for progress bars); may exceed what iteration yields."""
        ...
