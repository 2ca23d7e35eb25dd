"""One pass over a reference database that keeps a few numbers of each row; and photos whose files are equal."""

import hashlib
import math
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.geo import Float64Array
from retrieval.references.reader import SeenIds
from retrieval.references.reference import Reference, ReferenceSource, SkippedPhoto

_CHUNK_BYTES: Final = 1 << 20
_REPORT_EVERY: Final = 1000


@dataclass
class SessionSurvey:
    """One session: how many references, and when the first and the last were taken."""

    name: str | None
    count: int = 0
    first: datetime | None = None
    last: datetime | None = None

    def add(self, captured_at: datetime | None) -> None:
        """Count a reference."""
        self.count += 1
        if captured_at is None:
            return
        if self.first is None or _instant(captured_at) < _instant(self.first):
            self.first = captured_at
        if self.last is None or _instant(captured_at) > _instant(self.last):
            self.last = captured_at


def _instant(time: datetime) -> datetime:
    # Only for ordering: a time without an offset is compared as if it were UTC.
    return time if time.tzinfo else time.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Survey:
    """What was seen of N references.

    Attributes:
        lat, lon: (N,) float64 degrees, NaN without a position.
        east, north: (N,) float64 metres in the data set's plane, NaN without.
        heading_deg: (N,) float32, NaN without.
        session: (N,) int32, row in `sessions`.
        sessions: in the order of their first reference.
        without: field → how many references lack it.
        magnetic: how many headings are magnetic.
        repeated_ids: the ids that came more than once, once for every time too often.
        skipped: photos that the reader left out.
    """

    lat: Float64Array
    lon: Float64Array
    east: Float64Array
    north: Float64Array
    heading_deg: NDArray[np.float32]
    session: NDArray[np.int32]
    sessions: tuple[SessionSurvey, ...]
    without: dict[str, int]
    magnetic: int
    repeated_ids: tuple[str, ...]
    skipped: tuple[SkippedPhoto, ...]

    def __len__(self) -> int:
        return len(self.lat)

    @property
    def has_positions(self) -> bool:
        """Whether any reference has a latitude and longitude."""
        return bool(np.isfinite(self.lat).any())


def survey_references(source: ReferenceSource, on_progress: Callable[[int], None] | None = None) -> Survey:
    """Read a reference database once.

    Args:
        source: the reference database. About 45 bytes of each row are kept.
        on_progress: called now and then with the number of references read since.

    Raises:
        ReferenceDataError: it cannot be read, or holds nothing.
    """
    numbers: array[float] = array("d")  # lat, lon, east, north, heading of each row
    codes: array[int] = array("i")
    seen, nothing = SeenIds(), (math.nan, math.nan)
    sessions: dict[str | None, int] = {}
    surveys: list[SessionSurvey] = []
    without = dict.fromkeys(("position", "heading", "time", "altitude", "session"), 0)
    magnetic, repeated = 0, []
    count = 0
    for count, reference in enumerate(source, start=1):
        code = sessions.setdefault(reference.session, len(sessions))
        if code == len(surveys):
            surveys.append(SessionSurvey(reference.session))
        surveys[code].add(reference.captured_at)
        position, heading = reference.position, reference.heading_deg
        numbers.extend((position.lat, position.lon) if position else nothing)
        numbers.extend(reference.plane_m or nothing)
        numbers.append(math.nan if heading is None else heading)
        codes.append(code)
        if not seen.add(reference.id):
            repeated.append(reference.id)
        without["position"] += reference.position is None
        without["heading"] += reference.heading_deg is None
        without["time"] += reference.captured_at is None
        without["altitude"] += reference.altitude_m is None
        without["session"] += reference.session is None
        magnetic += reference.metadata.get("heading_reference") == "magnetic"
        if on_progress and count % _REPORT_EVERY == 0:
            on_progress(_REPORT_EVERY)
    if on_progress:
        on_progress(count % _REPORT_EVERY)
    lat, lon, east, north, headings = np.array(numbers).reshape(-1, 5).T.copy()
    return Survey(
        lat=lat,
        lon=lon,
        east=east,
        north=north,
        heading_deg=headings.astype(np.float32),
        session=np.array(codes, np.int32),
        sessions=tuple(surveys),
        without=without,
        magnetic=magnetic,
        repeated_ids=tuple(repeated),
        skipped=tuple(source.skipped),
    )


@dataclass(frozen=True, slots=True)
class IdenticalFiles:
    """Groups of ids whose files are equal, the largest group first; and the files that could not be read."""

    groups: tuple[tuple[str, ...], ...]
    unreadable: tuple[SkippedPhoto, ...]


def find_identical_files(
    references: Iterable[Reference], on_progress: Callable[[int], None] | None = None
) -> IdenticalFiles:
    """Compare the files of references; only files of one size are read.

    Args:
        references: id and path of each are kept in memory.
        on_progress: called with the number of files dealt with.
    """
    by_size: defaultdict[int, list[Reference]] = defaultdict(list)
    unreadable: list[SkippedPhoto] = []
    for reference in references:
        try:
            by_size[reference.path.stat().st_size].append(reference)
        except OSError as error:
            unreadable.append(_unreadable(reference.path, error))
    groups: list[tuple[str, ...]] = []
    for same_size in by_size.values():
        by_digest: defaultdict[bytes, list[str]] = defaultdict(list)
        for reference in same_size if len(same_size) > 1 else ():
            try:
                by_digest[_digest(reference.path)].append(reference.id)
            except OSError as error:
                unreadable.append(_unreadable(reference.path, error))
        groups += [tuple(ids) for ids in by_digest.values() if len(ids) > 1]
        if on_progress:
            on_progress(len(same_size))
    return IdenticalFiles(tuple(sorted(groups, key=lambda ids: (-len(ids), ids))), tuple(unreadable))


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()


def _unreadable(path: Path, error: OSError) -> SkippedPhoto:
    return SkippedPhoto(path, f"the file cannot be read ({error.strerror})")
