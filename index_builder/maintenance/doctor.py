"""What is odd about the photos of an index: copies, positions that the neighbours contradict, gaps in coverage.

All of it is suspicion, each with the numbers that it rests on; nothing is changed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.bundle import Bundle
from retrieval.errors import BundleError, ImageError, counted
from retrieval.geo import GeoPrior, Position, from_local_metres, haversine_m, to_local_metres
from retrieval.images import read_image
from retrieval.index.place_index import PlaceIndex
from retrieval.index.sampling import evenly_spaced

_BLOCK: Final = 512
_NEIGHBOURS: Final = 11
_BATCH: Final = 16
_LEAST_ERROR: Final = 1e-6
# Of an index whose spread of scores was not measured.
_USUAL_COPY_SCORE: Final = 0.995


@dataclass(frozen=True, slots=True)
class DoctorSettings:
    """What counts as odd.

    Attributes:
        copy_spreads: photos are look-alikes whose cosine is this share of the index's spread of scores below 1 at most;
            where that was not measured, 0.995 or more.
        copy_m: and lie at most this far apart: a copy, or a burst from one spot.
        outlier_m: neighbours that agree with each other within this, but lie further from the photo, contradict it.
        outlier_votes: how many of the nearest neighbours must agree on the other place.
        outlier_lead: by how much the best neighbour there must be more alike than anything near the photo's own
            position.
        jump_m: a photo that lies further than this from the one before and the one after it, which lie together, jumps.
        gap_m: consecutive photos of a session that are further apart leave a gap.
        most_gap_m: further apart than this they are two visits, not one with a gap.
        most_rows: of larger indexes a sample is examined for copies and outliers, spread evenly.
        vocabulary_photos: so many photos are looked at for how they fit the vocabulary of an adapted bundle.
        misfit: a photo fits badly whose local descriptors lie this many times as far from their centroids as those of
            the photos fitted to. Of those fitted to, up to 6 in 100 do; of another part of a campus 65, of another
            season 95.
        most_misfits: a larger share of these calls for fitting anew.
        few_fitted: what was fitted to fewer photos than this is better fitted to `many_times` as many.
        many_times: see there.
    """

    copy_spreads: float = 0.3
    copy_m: float = 10.0
    outlier_m: float = 25.0
    outlier_votes: int = 4
    outlier_lead: float = 0.05
    jump_m: float = 30.0
    gap_m: float = 30.0
    most_gap_m: float = 300.0
    most_rows: int = 50_000
    vocabulary_photos: int = 128
    misfit: float = 1.15
    most_misfits: float = 0.15
    few_fitted: int = 500
    many_times: float = 3.0


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


@dataclass(frozen=True, slots=True)
class VocabularyFit:
    """How photos of an index fit the vocabulary that its bundle is adapted with.

    Attributes:
        fitted_on: photos that the vocabulary comes from.
        photos: of the index that were looked at.
        error: how far their local descriptors lie from their centroids, squared, in units of those fitted to.
        misfits: how many of the photos looked at fit badly.
        refit: whether fitting anew would help.
    """

    fitted_on: int
    photos: int
    error: float
    misfits: int
    refit: bool

    def __str__(self) -> str:
        return (
            f"adapted to {counted(self.fitted_on, 'photo')}; {self.misfits} of {self.photos} looked at fit badly: "
            f"local descriptors lie {self.error:.2f} times as far from their centroids"
        )


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
        vocabulary: how photos fit it; None where the bundle is not adapted, or no photo can be read.
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
    vocabulary: VocabularyFit | None = None


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
    spread = index.manifest.score_spread
    copy_score = _USUAL_COPY_SCORE if spread is None else 1.0 - settings.copy_spreads * spread
    bundle, bundle_problem = _held_bundle(index)
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
            copies = (alike >= copy_score) & (metres <= settings.copy_m)
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
        bundle_problem=bundle_problem,
        vocabulary=None if bundle is None else _vocabulary_fit(index, bundle, settings),
    )


def _held_bundle(index: PlaceIndex) -> tuple[Bundle | None, str | None]:
    """The bundle that the version holds, and what is wrong with it."""
    try:
        return index.held_bundle(), None
    except BundleError as error:
        return None, str(error)


def _vocabulary_fit(index: PlaceIndex, bundle: Bundle, settings: DoctorSettings) -> VocabularyFit | None:
    adaptation = bundle.manifest.adaptation
    if adaptation is None:
        return None
    errors = _relative_errors(index, bundle, evenly_spaced(index.count, settings.vocabulary_photos))
    if not len(errors):
        return None
    misfits = int((errors > settings.misfit).sum())
    few = adaptation.photos < settings.few_fitted and index.count >= settings.many_times * adaptation.photos
    return VocabularyFit(
        fitted_on=adaptation.photos,
        photos=len(errors),
        error=float(errors.mean()),
        misfits=misfits,
        refit=few or misfits > settings.most_misfits * len(errors),
    )


def _relative_errors(index: PlaceIndex, bundle: Bundle, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n,) quantisation errors of those photos that can be read, in units of those of the photos fitted to."""
    # It needs onnx, which is not loaded where nothing is adapted.
    from retrieval.bundle.adaptation import quantisation_errors

    images = []
    for reference in index.references(rows):
        try:
            images.append(read_image(reference.path, bundle.preprocessing))
        except ImageError:
            continue
    assert bundle.manifest.adaptation is not None
    known = [max(one.quantisation_error, _LEAST_ERROR) for one in bundle.manifest.adaptation.vocabularies]
    batches = (np.stack(images[begin : begin + _BATCH]) for begin in range(0, len(images), _BATCH))
    return np.asarray((quantisation_errors(bundle, batches) / np.array(known)).mean(axis=1), np.float64)


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
