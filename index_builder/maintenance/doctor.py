"""What is odd about the photos of an index: copies, positions that the neighbours contradict, gaps in coverage.

All of it is suspicion, each with the numbers that it rests on; nothing is changed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import BundleError
from retrieval.geo import GeoPrior, Position, from_local_metres, haversine_m, to_local_metres
from retrieval.index.place_index import PlaceIndex
from retrieval.index.sampling import evenly_spaced

_BLOCK: Final = 512
_NEIGHBOURS: Final = 11


@dataclass(frozen=True, slots=True)
class DoctorSettings:
    """What counts as odd.

    Attributes:
        copy_score: photos whose descriptors have at least this cosine look alike.
        copy_m: and lie at most this far apart: a copy, or a burst from one spot.
        outlier_m: neighbours that agree with each other within this, but lie further from the photo, contradict it.
        outlier_votes: how many of the nearest neighbours must agree on the other place.
        outlier_lead: by how much the best neighbour there must be more alike than anything near the photo's own
            position.
        jump_m: a photo that lies further than this from the one before and the one after it, which lie together, jumps.
        gap_m: consecutive photos of a session that are further apart leave a gap.
        most_gap_m: further apart than this they are two visits, not one with a gap.
        most_rows: of larger indexes a sample is examined for copies and outliers, spread evenly.
    """

    copy_score: float = 0.995
    copy_m: float = 10.0
    outlier_m: float = 25.0
    outlier_votes: int = 4
    outlier_lead: float = 0.05
    jump_m: float = 30.0
    gap_m: float = 30.0
    most_gap_m: float = 300.0
    most_rows: int = 50_000


@dataclass(frozen=True, slots=True)
class Copies:
    """Photos that look alike and lie together: (n,) rows, the first of them is the oldest row."""

    rows: tuple[int, ...]
    least_score: float


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A photo whose look-alikes agree on another place.

    Attributes:
        row: of the photo.
        metres: from its own position to the place they agree on.
        lat, lon: of that place, degrees.
        votes: how many of the ten nearest neighbours lie there.
        score_there, score_here: cosine of the best of them, and of the best other photo near its own position.
    """

    row: int
    metres: float
    lat: float
    lon: float
    votes: int
    score_there: float
    score_here: float


@dataclass(frozen=True, slots=True)
class Jump:
    """A photo far from the one before and the one after it in its session, which lie together.

    Attributes:
        row: of the photo.
        metres: to the middle between the two.
        lat, lon: of that middle, degrees.
        session: of the three.
    """

    row: int
    metres: float
    lat: float
    lon: float
    session: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Two photos of a session, one after the other, with nothing of the index between them."""

    before: int
    after: int
    metres: float
    session: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        count: references of the index.
        examined: of them, for copies and outliers.
        copies, jumps, misplaced, gaps: largest suspicion first.
        without_heading, without_time, without_session: how many references lack what.
        sessions: how many references each has.
        bundle_problem: what is wrong with the bundle that the version holds, with its remedy, or None.
    """

    count: int
    examined: int
    copies: list[Copies]
    jumps: list[Jump]
    misplaced: list[Misplaced]
    gaps: list[Gap]
    without_heading: int
    without_time: int
    without_session: int
    sessions: dict[str, int] = field(default_factory=dict)
    bundle_problem: str | None = None


def diagnose(
    index: PlaceIndex, settings: DoctorSettings | None = None, on_progress: Callable[[int], None] = lambda _: None
) -> Diagnosis:
    """Look for copies, misplaced photos and gaps.

    Args:
        index: which.
        settings: what counts as odd.
        on_progress: called with the number of references examined since the last call.
    """
    settings = settings or DoctorSettings()
    examined = evenly_spaced(index.count, settings.most_rows)
    pairs: list[tuple[int, int, float]] = []
    misplaced: list[Misplaced] = []
    for start in range(0, len(examined), _BLOCK):
        rows = examined[start : start + _BLOCK]
        found = index.search_whitened(index.descriptors(rows), min(_NEIGHBOURS, index.count))
        for row, neighbours, scores in zip(rows, found.rows, found.scores, strict=True):
            others = (neighbours != row) & (neighbours >= 0)
            near, alike = neighbours[others], scores[others].astype(np.float64)
            metres = np.asarray(haversine_m(index.lat[row], index.lon[row], index.lat[near], index.lon[near]))
            copies = (alike >= settings.copy_score) & (metres <= settings.copy_m)
            pairs += [
                (int(row), int(other), float(score)) for other, score in zip(near[copies], alike[copies], strict=True)
            ]
            suspect = _misplaced(index, int(row), near, alike, metres, settings)
            if suspect is not None:
                misplaced.append(suspect)
        on_progress(len(rows))
    references = _Metadata.of(index)
    jumps = _jumps(index, references, settings)
    return Diagnosis(
        count=index.count,
        examined=len(examined),
        copies=_groups(pairs),
        jumps=jumps,
        misplaced=sorted(misplaced, key=lambda one: one.score_here - one.score_there),
        gaps=_gaps(index, references, {jump.row for jump in jumps}, settings),
        without_heading=references.without_heading,
        without_time=references.without_time,
        without_session=int((references.session < 0).sum()),
        sessions=references.counts,
        bundle_problem=_bundle_problem(index),
    )


def _bundle_problem(index: PlaceIndex) -> str | None:
    try:
        index.held_bundle()
    except BundleError as error:
        return str(error)
    return None


def _misplaced(
    index: PlaceIndex,
    row: int,
    near: NDArray[np.int64],
    alike: NDArray[np.float64],
    metres: NDArray[np.float64],
    settings: DoctorSettings,
) -> Misplaced | None:
    """Neighbours around the best one elsewhere that agree with each other, and are clearly more alike than any here."""
    elsewhere = np.flatnonzero(metres > 2 * settings.outlier_m)
    if len(elsewhere) < settings.outlier_votes:
        return None
    best = elsewhere[np.argmax(alike[elsewhere])]
    apart = np.asarray(haversine_m(index.lat[near[best]], index.lon[near[best]], index.lat[near], index.lon[near]))
    there = np.flatnonzero(apart <= settings.outlier_m)
    score_there = float(alike[there].max())
    if len(there) < settings.outlier_votes:
        return None
    score_here = _best_around(index, row, settings.outlier_m)
    if score_here is None or score_there - score_here < settings.outlier_lead:
        return None
    centre = Position(float(index.lat[near[best]]), float(index.lon[near[best]]))
    # In metres: longitudes on both sides of the antimeridian have no middle.
    east, north = np.median(to_local_metres(centre, index.lat[near[there]], index.lon[near[there]]), axis=0)
    place = from_local_metres(centre, float(east), float(north))
    far = float(haversine_m(index.lat[row], index.lon[row], place.lat, place.lon))
    return Misplaced(row, far, place.lat, place.lon, len(there), score_there, score_here)


def _best_around(index: PlaceIndex, row: int, radius_m: float) -> float | None:
    """The best cosine of another photo near a photo's own position; None where there is no other."""
    rows = index.blocks.rows_within(GeoPrior(float(index.lat[row]), float(index.lon[row]), radius_m))
    rows = rows[rows != row]
    if not len(rows):
        return None
    _, scores = index.vectors.search_rows(index.descriptors(np.array([row]))[0], 1, rows)
    return float(scores[0])


def _groups(pairs: list[tuple[int, int, float]]) -> list[Copies]:
    """Connected look-alikes, the largest groups first."""
    parent: dict[int, int] = {}

    def root(row: int) -> int:
        parent.setdefault(row, row)
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for first, second, _ in pairs:
        a, b = root(first), root(second)
        parent[max(a, b)] = min(a, b)
    members: dict[int, list[int]] = {}
    for row in parent:
        members.setdefault(root(row), []).append(row)
    least: dict[int, float] = {}
    for first, _, score in pairs:
        least[root(first)] = min(least.get(root(first), 1.0), score)
    groups = [Copies(tuple(sorted(rows)), least[top]) for top, rows in members.items()]
    return sorted(groups, key=lambda group: (-len(group.rows), group.rows))


@dataclass(frozen=True)
class _Metadata:
    """What is asked of all references: numbers of sessions (-1: none), seconds (nan: none), and what is lacking."""

    session: NDArray[np.int64]
    seconds: NDArray[np.float64]
    names: list[str]
    without_heading: int
    without_time: int

    @classmethod
    def of(cls, index: PlaceIndex) -> "_Metadata":
        number: dict[str, int] = {}
        session = np.full(index.count, -1, np.int64)
        seconds = np.full(index.count, np.nan)
        without_heading = 0
        for start in range(0, index.count, 4096):
            rows = np.arange(start, min(start + 4096, index.count))
            for row, reference in zip(rows, index.references(rows), strict=True):
                without_heading += reference.heading_deg is None
                if reference.session is not None:
                    session[row] = number.setdefault(reference.session, len(number))
                if reference.captured_at is not None:
                    seconds[row] = reference.captured_at.timestamp()
        return cls(session, seconds, list(number), without_heading, int(np.isnan(seconds).sum()))

    def in_time(self, number: int) -> NDArray[np.int64]:
        """The rows of a session that have a time, in its order."""
        rows = np.flatnonzero((self.session == number) & np.isfinite(self.seconds))
        return rows[np.argsort(self.seconds[rows], kind="stable")]

    @property
    def counts(self) -> dict[str, int]:
        """References of each session."""
        found = np.bincount(self.session[self.session >= 0], minlength=len(self.names))
        return {name: int(count) for name, count in zip(self.names, found, strict=True)}


def _jumps(index: PlaceIndex, references: _Metadata, settings: DoctorSettings) -> list[Jump]:
    jumps = []
    for number, name in enumerate(references.names):
        rows = references.in_time(number)
        if len(rows) < 3:
            continue
        lat, lon = index.lat[rows], index.lon[rows]
        step = np.asarray(haversine_m(lat[:-1], lon[:-1], lat[1:], lon[1:]))
        across = np.asarray(haversine_m(lat[:-2], lon[:-2], lat[2:], lon[2:]))
        least = np.minimum(step[:-1], step[1:])
        for place in np.flatnonzero((least > settings.jump_m) & (across < least)):
            middle = _middle(index, int(rows[place]), int(rows[place + 2]))
            row = int(rows[place + 1])
            far = float(haversine_m(index.lat[row], index.lon[row], middle.lat, middle.lon))
            jumps.append(Jump(row, far, middle.lat, middle.lon, name))
    return sorted(jumps, key=lambda jump: -jump.metres)


def _middle(index: PlaceIndex, first: int, second: int) -> Position:
    start = Position(float(index.lat[first]), float(index.lon[first]))
    east, north = to_local_metres(start, index.lat[[second]], index.lon[[second]])[0]
    return from_local_metres(start, float(east) / 2, float(north) / 2)


def _gaps(index: PlaceIndex, references: _Metadata, jumps: set[int], settings: DoctorSettings) -> list[Gap]:
    """Consecutive photos of a session with no photo near the middle between them; jumps are left out."""
    gaps = []
    for number, name in enumerate(references.names):
        rows = np.array([row for row in references.in_time(number) if int(row) not in jumps], np.int64)
        metres = np.asarray(
            haversine_m(index.lat[rows[:-1]], index.lon[rows[:-1]], index.lat[rows[1:]], index.lon[rows[1:]])
        )
        for place in np.flatnonzero((metres > settings.gap_m) & (metres <= settings.most_gap_m)):
            before, after = int(rows[place]), int(rows[place + 1])
            middle = _middle(index, before, after)
            # Another session's photos may fill it.
            if not len(index.blocks.rows_within(GeoPrior(middle.lat, middle.lon, settings.gap_m / 2))):
                gaps.append(Gap(before, after, float(metres[place]), name))
    return sorted(gaps, key=lambda gap: -gap.metres)
