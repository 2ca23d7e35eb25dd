"""What an evaluation found: a frozen, typed report that goes to JSON and back."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from retrieval.evaluation.positions import Measure

Convention = Literal["solvable", "vpr-methods-evaluation"]
Grouping = Literal["session", "place"]
Answer = Literal["top-1", "fix", "located fix"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Frozen):
    """A number with its bootstrap interval; all None where no query counts.

    Attributes:
        value: the number itself.
        low, high: the ends of the interval.
    """

    value: float | None
    low: float | None
    high: float | None


class RecallAt(_Frozen):
    """recall@N at one radius.

    Attributes:
        n: how many of the first matches count.
        recall: share of the counted queries, in [0, 1].
        chance: what a random ranking would reach, averaged over the same queries; None where no query counts.
    """

    n: int
    recall: Estimate
    chance: float | None


class RadiusReport(_Frozen):
    """recall at one radius.

    Attributes:
        radius_m: a match within this distance is a true one, the border included.
        solvable: how many queries have a true match in the database at all.
        solvable_share: that, over all queries.
        counted: how many queries are in the denominator.
        groups: how many groups the interval draws from: those that hold a counted query.
        median_positives: true matches in the database per solvable query, the median; None where there is none.
        at: one entry per N, ascending.
    """

    radius_m: float
    solvable: int
    solvable_share: float
    counted: int
    groups: int
    median_positives: float | None
    at: tuple[RecallAt, ...]


class PositionErrorReport(_Frozen):
    """Metres between an answer and the truth, over the queries that were answered.

    Attributes:
        answer: ``top-1`` (the position of the best match), ``fix``, or ``located fix`` (only those of status LOCATED).
        answered, unanswered: how many queries.
        median_m, p90_m: metres.
        within_m: the distance of `within_share`.
        within_share: share of the answered queries whose error is at most `within_m`.
    """

    answer: Answer
    answered: int
    unanswered: int
    median_m: Estimate
    p90_m: Estimate
    within_m: float
    within_share: Estimate


class ConfidenceBin(_Frozen):
    """Fixes of similar confidence.

    Attributes:
        fixes: how many.
        mean_confidence: of these.
        within_share: share of them that lie within 25 m.
    """

    fixes: int
    mean_confidence: float
    within_share: float


class AnsweredPoint(_Frozen):
    """What giving only the fixes of highest confidence would do.

    Attributes:
        confidence: the least that is given.
        answered_share: share of all queries that get one.
        within_share: share of these that lie within 25 m.
    """

    confidence: float
    answered_share: float
    within_share: float


class ConfidenceReport(_Frozen):
    """Whether the confidence of a fix is the probability it claims to be.

    Attributes:
        calibrated: whether it claims to be fitted to measured errors.
        brier: mean squared difference of confidence and outcome (Brier 1950); 0 is perfect.
        brier_of_base_rate: the same for always saying the overall share: what a useful confidence must beat.
        calibration_error: mean |confidence − share within 25 m| over bins of equally many fixes, weighted by size.
        calibration_error_if_honest: what perfectly calibrated confidences would show with so few fixes, on average.
        bins: ascending in confidence.
        radius_coverage: share of fixes whose radius_m holds the truth (it should be 0.68); None without radii.
        answered_curve: from the fixes of highest confidence only to all of them.
    """

    calibrated: bool
    brier: float
    brier_of_base_rate: float
    calibration_error: Estimate
    calibration_error_if_honest: float
    bins: tuple[ConfidenceBin, ...]
    radius_coverage: Estimate | None
    answered_curve: tuple[AnsweredPoint, ...]


class StatusReport(_Frozen):
    """The statuses of some photos.

    Attributes:
        of: which photos: solvable queries, other queries, or photos from elsewhere.
        photos: how many.
        located_share, ambiguous_share, no_match_share: they add up to 1.
    """

    of: str
    photos: int
    located_share: float
    ambiguous_share: float
    no_match_share: float


class NoMatchPoint(_Frozen):
    """What a threshold of familiarity would reject.

    Attributes:
        familiarity: less familiar photos are NO_MATCH, see `FixMaker.familiarity`.
        solvable_share: share of the solvable queries below it.
        elsewhere_share: share of the photos from elsewhere below it.
    """

    familiarity: float
    solvable_share: float
    elsewhere_share: float


class RecallChange(_Frozen):
    """What re-ranking did to recall@N at one radius.

    Attributes:
        radius_m, n: of the recall.
        before: recall in the order of the scores; None where no query counts.
        change: of the same queries, and its interval.
    """

    radius_m: float
    n: int
    before: float | None
    change: Estimate


class RerankingReport(_Frozen):
    """What re-ranking changed.

    Attributes:
        top: so many of the best matches were compared with each query.
        min_inliers: so many points had to fit for a match to move up.
        moved_share: share of all queries that have another best match now.
        changes: of every radius and N.
    """

    top: int
    min_inliers: int
    moved_share: float
    changes: tuple[RecallChange, ...]


class IntervalMethod(_Frozen):
    """How the intervals were made: percentile bootstrap over whole groups.

    Attributes:
        level: the share of resamples an interval holds.
        resamples: how many.
        seed: of the random generator.
        grouping: what was drawn: sessions or places.
        groups: how many groups the queries fall into.
        place_m: side of a place in metres; None for sessions.
    """

    level: float
    resamples: int
    seed: int
    grouping: Grouping
    groups: int
    place_m: float | None


class EvaluationReport(_Frozen):
    """Everything an evaluation found.

    Attributes:
        convention: ``solvable`` (only queries with a true match count) or ``vpr-methods-evaluation`` (all count).
        measure: how distance was measured for recall: great circle, plane, or UTM.
        queries, database: how many images.
        ranked: how many matches were ranked per query.
        recall: one entry per radius.
        position_errors: of the top-1 match and, where given, of the fix.
        confidence: None without fixes that state one.
        statuses: of queries, and of photos from elsewhere where there are some; empty without fixes.
        no_match_curve: what other thresholds of NO_MATCH would do; empty without photos from elsewhere.
        reranking: what it changed; recall, top-1 and figures are those after it. None where matches lie by score.
        intervals: how they were made.
        notes: what a reader must know before trusting the numbers.
    """

    convention: Convention
    measure: Measure
    queries: int
    database: int
    ranked: int
    recall: tuple[RadiusReport, ...]
    position_errors: tuple[PositionErrorReport, ...]
    confidence: ConfidenceReport | None
    statuses: tuple[StatusReport, ...] = ()
    no_match_curve: tuple[NoMatchPoint, ...] = ()
    reranking: RerankingReport | None = None
    intervals: IntervalMethod
    notes: tuple[str, ...]
