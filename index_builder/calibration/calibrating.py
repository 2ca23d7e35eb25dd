"""Calibrate an index: fit confidence, radius and NO_MATCH to fixes whose errors are known.

The queries are its own references, held out by whole sessions, or photos of known position that it does not hold.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.calibration.queries import (
    HeldOutMatches,
    Int64Array,
    Occasions,
    OutsidePhotos,
    OutsideSearch,
    ReferenceIndex,
    coverage_of,
    occasions_of,
    search_held_out,
)
from retrieval.errors import ParameterError
from retrieval.geo import Float64Array, haversine_m
from retrieval.index.place_index import PlaceIndex
from retrieval.localize.calibration import Calibration, HeldOut, MethodCalibration, RadiusKnot, logistic
from retrieval.localize.evidence import EVIDENCE_NAMES, FIX_METHODS, FixMethod, FixSettings
from retrieval.localize.fix import FixMaker

_log = logging.getLogger("sightfix.index")

# The distance that confidence refers to, and the share of truths that the radius holds.
WITHIN_M: Final = 25.0
RADIUS_SHARE: Final = 0.68

# Logistic regression: the weight of the prior on standardised evidence, in queries.
_RIDGE: Final = 1.0
_NEWTON_STEPS: Final = 100

# Evidence that varies less than this counts as constant.
_CONSTANT: Final = 1e-9

_QUERIES_A_KNOT: Final = 40
_MAX_KNOTS: Final = 8

# Where errors are 0: their logarithm must be finite.
_LEAST_RADIUS_M: Final = 0.1

# The error of a query without any match: half way around the Earth.
_LOST_M: Final = 2.0e7


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How a calibration is fitted.

    Attributes:
        max_queries: at most so many references are held out, or photos taken, drawn at random.
        max_pairs: queries times references; fewer queries are drawn from very large indexes.
        min_queries: with fewer there is no calibration.
        min_coverage: with less of the surroundings of the median reference known from other sessions there is none.
        min_of_a_kind: with fewer right or fewer wrong fixes there is none either.
        away_m: everything within this of a query is held out to stand for photos of another place.
        away_share: the share of such photos among those that confidence is meant for.
        rejected_share: how many photos of places in the index may become NO_MATCH.
        seed: of what is drawn.
    """

    max_queries: int = 1000
    max_pairs: int = 2_000_000_000
    min_queries: int = 100
    min_coverage: float = 0.4
    min_of_a_kind: int = 20
    away_m: float = 100.0
    away_share: float = 0.02
    rejected_share: float = 0.07
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trials:
    """Fixes of references that were held out, or of photos that the index does not hold.

    Attributes:
        evidence: (T, 3) float64, see `EVIDENCE_NAMES`.
        error_m: (T,) float64, of the fix.
        familiarity: (T,) float64, the best score.
    """

    evidence: Float64Array
    error_m: Float64Array
    familiarity: Float64Array


def fit_method(seen: Trials, unseen: Trials, settings: CalibrationSettings) -> MethodCalibration:
    """Fit confidence and radius of one method.

    Args:
        seen: fixes of references whose place remained in the index.
        unseen: fixes of references whose place did not remain; all are wrong.
        settings: what share the second have.
    """
    odds = settings.away_share / (1.0 - settings.away_share)
    each = odds * len(seen.error_m) / max(1, len(unseen.error_m))
    intercept, slopes = fit_logistic(
        np.concatenate([seen.evidence, unseen.evidence]),
        np.concatenate([seen.error_m <= WITHIN_M, np.zeros(len(unseen.error_m), bool)]),
        np.concatenate([np.ones(len(seen.error_m)), np.full(len(unseen.error_m), each)]),
    )
    confidence = logistic(intercept + seen.evidence @ slopes)
    return MethodCalibration(
        intercept=intercept,
        weights=tuple(float(slope) for slope in slopes),
        radius=tuple(fit_radius(confidence, seen.error_m)),
    )


def fit_logistic(evidence: Float64Array, right: NDArray[np.bool_], weight: Float64Array) -> tuple[float, Float64Array]:
    """Logistic regression whose slopes are never negative, with a normal prior on standardised slopes.

    Newton's method; a slope that comes out negative is set to 0 and the rest fitted again.

    Args:
        evidence: (T, M) float64.
        right: (T,) bool.
        weight: (T,) float64, in queries.

    Returns:
        the intercept and (M,) slopes, in the unit of the evidence.
    """
    mean = np.average(evidence, axis=0, weights=weight)
    spread = np.sqrt(np.average((evidence - mean) ** 2, axis=0, weights=weight))
    kept = spread > _CONSTANT
    spread = np.where(kept, spread, 1.0)
    while True:
        design = np.concatenate([np.ones((len(evidence), 1)), (evidence - mean) / spread * kept], axis=1)
        fitted = _newton(design, right, weight)
        negative = kept & (fitted[1:] < 0.0)
        if not negative.any():
            break
        kept = kept & ~negative
    slopes = np.where(kept, fitted[1:] / spread, 0.0)
    return float(fitted[0] - slopes @ mean), slopes


def _newton(design: Float64Array, right: NDArray[np.bool_], weight: Float64Array) -> Float64Array:
    # A weak prior on the intercept keeps it finite when all are right.
    ridge = np.diag([1e-6] + [_RIDGE] * (design.shape[1] - 1))
    at = np.zeros(design.shape[1])
    for _ in range(_NEWTON_STEPS):
        predicted = logistic(design @ at)
        slope = design.T @ (weight * (right - predicted)) - ridge @ at
        curvature = (design.T * (weight * predicted * (1.0 - predicted))) @ design + ridge
        step = np.linalg.solve(curvature, slope)
        at = at + step * min(1.0, 4.0 / max(float(np.abs(step).max()), 1e-12))
        if np.abs(step).max() < 1e-9:
            break
    return at


def fit_radius(confidence: Float64Array, error_m: Float64Array) -> list[RadiusKnot]:
    """The radius that holds 68 % of the truths, as a function of confidence that never ascends.

    Groups of equally many fixes along confidence, the quantile of each, pooled where a surer group is worse, and at
    last all radii scaled by one factor so that they hold 68 % together.

    Args:
        confidence: (T,) float64.
        error_m: (T,) float64.
    """
    order = np.argsort(confidence, kind="stable")
    groups = max(1, min(_MAX_KNOTS, len(order) // _QUERIES_A_KNOT))
    parts = np.array_split(order, groups)
    at = np.maximum.accumulate([confidence[part].mean() for part in parts])
    quantiles = [np.quantile(error_m[part], RADIUS_SHARE) for part in parts]
    smooth = descending([float(np.log(max(q, _LEAST_RADIUS_M))) for q in quantiles], [len(part) for part in parts])
    stated = np.exp(np.interp(confidence, at, smooth))
    factor = float(np.quantile(error_m / stated, RADIUS_SHARE))
    # Exponentials are rounded: what is meant to be equal must not ascend by a last digit.
    radii = np.minimum.accumulate(np.maximum(np.exp(smooth) * factor, _LEAST_RADIUS_M))
    return [RadiusKnot(confidence=float(c), radius_m=float(r)) for c, r in zip(at, radii, strict=True)]


def descending(values: Iterable[float], weights: Iterable[float]) -> list[float]:
    """The nearest never ascending sequence in least squares, by pooling adjacent violators (Ayer et al., 1955)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] < pools[-1][0]:
            (a, wa, na), (b, wb, nb) = pools[-2:]
            pools[-2:] = [((a * wa + b * wb) / (wa + wb), wa + wb, na + nb)]
    return [value for value, _, size in pools for _ in range(size)]


def calibrate(index: PlaceIndex, photos: OutsidePhotos | None) -> Calibration | None:
    """Measure how far to trust an index's fixes on photos of known position, or else on its own references.

    Args:
        index: which.
        photos: described by its bundle, not whitened; None where there are none.

    Returns:
        None where that is not possible. With too few photos of places in the index, its references are taken, and a
        warning is logged.
    """
    if photos is not None:
        try:
            return fit_on_photos(index, replace(photos, descriptors=index.whitened(photos.descriptors)))
        except ParameterError as error:
            _log.warning("%s: %s; calibrated on its own references instead", index.where, error)
    return fit_calibration(index)


def fit_calibration(index: ReferenceIndex, settings: CalibrationSettings | None = None) -> Calibration | None:
    """Measure how far to trust an index's fixes, on its own references.

    Each query is a reference; its whole session is left out of the search, so that neither its burst nor its light or
    camera helps. A new photo meets more references than that, so confidence errs on the low side, the more so the fewer
    sessions there are. Where sessions have no names or do not overlap, photos more than half an hour apart count as of
    different sessions.

    Args:
        index: a place index. Only positions, sessions, times and stored descriptors are read.
        settings: how.

    Returns:
        None where that is not possible: too few references of different sessions see the same places, or (nearly) all
        of the fixes are right, or wrong.
    """
    settings = settings or CalibrationSettings()
    for occasions in occasions_of(index):
        drawn = _draw(index, occasions, settings)
        if drawn is not None:
            return _fit(index, occasions, drawn, settings)
    return None


def _draw(index: ReferenceIndex, occasions: Occasions, settings: CalibrationSettings) -> Int64Array | None:
    """Rows to hold out, ascending; None where sessions hardly overlap."""
    known = np.flatnonzero(occasions.label >= 0)
    wanted = min(settings.max_queries, settings.max_pairs // index.count)
    if occasions.count < 2 or min(wanted, len(known)) < settings.min_queries:
        return None
    drawn = np.random.default_rng(settings.seed).permutation(known)[: 4 * wanted]
    coverage = coverage_of(index, occasions, drawn, WITHIN_M)
    # Sessions that meet at crossings only would measure crossings only, and badly: little remains around these either.
    if np.median(coverage.left / coverage.all) < settings.min_coverage:
        return None
    covered = drawn[coverage.left > 0][:wanted]
    return np.sort(covered) if len(covered) >= settings.min_queries else None


def _fit(
    index: ReferenceIndex, occasions: Occasions, queries: Int64Array, settings: CalibrationSettings
) -> Calibration | None:
    k = FixSettings().matches_needed
    localized = Localized(
        kind=occasions.kind,
        lat=index.lat[queries],
        lon=index.lon[queries],
        occasion=occasions.label[queries],
        here=search_held_out(index, occasions, queries, k),
        away=search_held_out(index, occasions, queries, k, settings.away_m),
        known=np.ones(len(queries), bool),
    )
    try:
        return calibration_of(index, localized, settings)
    except _AllAlikeError:
        return None


@dataclass(frozen=True, slots=True)
class Localized:
    """Queries whose position is known, and their matches.

    Attributes:
        kind: what they are.
        lat, lon: (Q,) degrees, the truth.
        occasion: (Q,) int64, which were taken on the same occasion.
        here: their matches.
        away: their matches without anything around them.
        known: (Q,) bool, whether their place is in the index.
    """

    kind: HeldOut
    lat: Float64Array
    lon: Float64Array
    occasion: Int64Array
    here: HeldOutMatches
    away: HeldOutMatches
    known: NDArray[np.bool_]

    @property
    def count(self) -> int:
        """Number of queries."""
        return len(self.lat)


def fit_on_photos(
    index: ReferenceIndex, photos: OutsidePhotos, settings: CalibrationSettings | None = None
) -> Calibration:
    """Measure how far to trust an index's fixes, on photos of known position that it does not hold.

    They should be like the later queries: of that camera, height and light. What the index holds of their own occasion
    is left out. Unlike held-out references they lose nothing that a new photo would meet. Photos that were taken where
    the index has no references take part in confidence and radius, not in NO_MATCH.

    Args:
        index: a place index.
        photos: described by its bundle, and whitened as it whitens.
        settings: how.

    Raises:
        ParameterError: see `match_photos`; or too few right or wrong fixes (``not_calibrated``).
    """
    settings = settings or CalibrationSettings()
    return calibration_of(index, match_photos(index, photos, settings), settings)


def match_photos(index: ReferenceIndex, photos: OutsidePhotos, settings: CalibrationSettings) -> Localized:
    """Search for photos that an index does not hold.

    Args:
        index: where.
        photos: described by its bundle, and whitened as it whitens; at most `max_queries` are drawn, or as many more as
            it takes for enough of places in the index.
        settings: of the calibration.

    Raises:
        ParameterError: too few photos of places in the index, or photos that it holds without a session or time that
            says what else was taken with them (``not_calibrated``).
    """
    search = OutsideSearch.of(index, photos)
    undated = int(search.indexed_undated().sum())
    if undated:
        raise ParameterError(
            f"{undated} of {photos.count} photos are in the index, and neither session nor time says what else was "
            "taken with them",
            remedy="Give photos that are not in the index, or sessions or times with the photos and the references",
            code="not_calibrated",
        )
    known = search.known(WITHIN_M)
    if known.sum() < settings.min_queries:
        raise ParameterError(
            f"{known.sum()} of {photos.count} photos lie within {WITHIN_M:g} m of a reference that was not taken with "
            f"them (same session, or within half an hour); {settings.min_queries} are needed to calibrate",
            remedy="Give more photos of places that are in the index",
            code="not_calibrated",
        )
    wanted = min(settings.max_queries, settings.max_pairs // index.count)
    wanted = max(wanted, int(np.ceil(1.5 * settings.min_queries * photos.count / known.sum())))
    if wanted < photos.count:
        drawn = np.sort(np.random.default_rng(settings.seed).permutation(photos.count)[:wanted])
        search, known = search.take(drawn), known[drawn]
    photos, k = search.photos, FixSettings().matches_needed
    here, away = search.search(k), search.search(k, settings.away_m)
    return Localized("photos", photos.lat, photos.lon, photos.occasions, here, away, known)


class _AllAlikeError(ParameterError):
    """Nearly all fixes are right, or wrong."""


def calibration_of(index: ReferenceIndex, localized: Localized, settings: CalibrationSettings) -> Calibration:
    """The calibration that queries of known position give.

    Raises:
        ParameterError: too few of their fixes are right, or wrong (``not_calibrated``).
    """
    fix_settings = FixSettings()
    here, away = localized.here, localized.away
    lost = np.flatnonzero(away.remained >= settings.min_queries)
    methods: dict[FixMethod, MethodCalibration] = {}
    familiarity, away_familiarity = here.scores.max(axis=1)[localized.known], away.scores[lost].max(axis=1)
    right_share = 0.0
    for method in FIX_METHODS:
        made = FixSettings(method=method)
        seen = make_trials(index, localized.lat, localized.lon, here, made)
        unseen = make_trials(index, localized.lat[lost], localized.lon[lost], _some(away, lost), made)
        right = seen.error_m <= WITHIN_M
        if min(right.sum(), (~right).sum()) < settings.min_of_a_kind:
            raise _AllAlikeError(
                f"{right.sum()} of {len(right)} fixes are right; {settings.min_of_a_kind} right and as many wrong ones "
                "are needed to tell them apart",
                remedy="Give more photos",
                code="not_calibrated",
            )
        methods[method] = fit_method(seen, unseen, settings)
        if method == fix_settings.method:
            right_share = float(right.mean())
    least = float(np.quantile(familiarity, settings.rejected_share))
    return Calibration(
        held_out=localized.kind,
        queries=localized.count,
        groups=int(np.unique(localized.occasion).size),
        within_m=WITHIN_M,
        right_share=right_share,
        familiarity="score",
        min_familiarity=least,
        rejected_share=float((familiarity < least).mean()),
        away_m=settings.away_m,
        away_queries=len(lost),
        away_rejected_share=float((away_familiarity < least).mean()) if len(lost) else None,
        max_matches=fix_settings.max_matches,
        cluster_radius_m=fix_settings.cluster_radius_m,
        kernel_m=fix_settings.kernel_m,
        score_scale=fix_settings.score_scale,
        evidence_matches=fix_settings.evidence_matches,
        methods=methods,
    )


def _some(matches: HeldOutMatches, which: Int64Array) -> HeldOutMatches:
    return HeldOutMatches(matches.rows[which], matches.scores[which], matches.centred[which], matches.remained[which])


def make_trials(
    index: ReferenceIndex, lat: Float64Array, lon: Float64Array, matches: HeldOutMatches, settings: FixSettings
) -> Trials:
    """Make the fix of every query as a server would.

    Args:
        index: that was searched.
        lat, lon: (T,) degrees, the truth.
        matches: of T queries; one without any has no evidence, and the largest error there is.
        settings: of the fix.
    """
    evidence, errors = np.zeros((len(lat), len(EVIDENCE_NAMES))), np.full(len(lat), _LOST_M)
    fix_maker = FixMaker(index, settings)
    for place in range(len(lat)):
        ranking = fix_maker.ranking(matches.rows[place], matches.scores[place])
        if not len(ranking):
            continue
        found, of_query = fix_maker.weigh(ranking, matches.centred[place])
        evidence[place] = of_query.values
        errors[place] = haversine_m(lat[place], lon[place], found.position.lat, found.position.lon)
    return Trials(evidence, errors, np.maximum(matches.scores.max(axis=1, initial=-1.0), -1.0))
