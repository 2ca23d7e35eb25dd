"""From a ranking to a report: recall@N, chance, position error, what re-ranking changed, and their intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError, counted
from retrieval.evaluation.bootstrap import FEW_GROUPS, place_groups, session_groups
from retrieval.evaluation.fixes import (
    Fixes,
    confidence_report,
    estimate,
    fix_errors_m,
    no_match_curve,
    position_error_report,
    status_report,
    top_errors_m,
)
from retrieval.evaluation.positions import (
    Ground,
    Int64Array,
    chance_at,
    count_positives,
    field_ground,
    first_hits,
    hits_at,
    true_ground,
)
from retrieval.evaluation.protocol import Protocol, Ranked, check_ranked
from retrieval.evaluation.report import (
    Answer,
    EvaluationReport,
    IntervalMethod,
    RadiusReport,
    RecallAt,
    RecallChange,
    RerankingReport,
    StatusReport,
)
from retrieval.geo import Float64Array


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A report and the numbers per query behind it.

    Attributes:
        report: what to print and to keep.
        ground: where queries and database lie, as recall measured it.
        true_ground: the same as position errors measured it; differs from `ground` in UTM and in a plane only.
        curves: one per radius, recall at every N from 1 to the largest asked.
        first_hit: (radii, Nq) int64, rank (0 = best) of the first true match, K where none.
        positives: (radii, Nq) int64, true matches of each query in the database.
        top_error_m: (Nq,) float64 metres of the best match, NaN where unanswered.
        fix_error_m: the same of the fix, or None.
    """

    report: EvaluationReport
    ground: Ground
    true_ground: Ground
    curves: tuple[RadiusReport, ...]
    first_hit: Int64Array
    positives: Int64Array
    top_error_m: Float64Array
    fix_error_m: Float64Array | None


def evaluate(
    ranked: Ranked,
    protocol: Protocol | None = None,
    on_progress: Callable[[int], None] | None = None,
    notes: Sequence[str] = (),
) -> Evaluation:
    """Evaluate a ranking.

    Args:
        ranked: queries, database and matches.
        protocol: how to count; the default is 25 m, N = 1, 5, 10, 20, solvable queries.
        on_progress: called with the work done since; all of it adds up to `evaluation_work`.
        notes: what else a reader must know; put before our own.

    Raises:
        ParameterError: nothing to evaluate, rows that are not rows of the database, or fewer matches than the
            largest N asks for.
    """
    protocol = protocol or Protocol()
    advance = on_progress or (lambda _: None)
    check_ranked(ranked, protocol)
    field = protocol.convention == "vpr-methods-evaluation"
    metres = true_ground(ranked.queries, ranked.database)
    ground = field_ground(ranked.queries, ranked.database) if field else metres
    positives = count_positives(ground, protocol.radii_m, advance)
    groups, method, group_notes = _groups(ranked, protocol)
    first_hit = np.stack([first_hits(ground, ranked.rows, radius) for radius in protocol.radii_m])
    curves = []
    for i, radius in enumerate(protocol.radii_m):
        curves.append(_recall_curve(ranked, protocol, radius, positives[i], first_hit[i], groups))
        advance(len(ranked.queries))
    top_error = top_errors_m(metres, ranked.rows)
    fix_error = None if ranked.fixes is None else fix_errors_m(ranked.queries, ranked.fixes)
    position_errors = []
    for answer, errors in _errors_by_answer(top_error, fix_error, ranked.fixes).items():
        position_errors.append(position_error_report(answer, errors, groups, protocol.bootstrap))
        advance(len(ranked.queries))
    report = EvaluationReport(
        convention=protocol.convention,
        measure=ground.measure,
        queries=len(ranked.queries),
        database=len(ranked.database),
        ranked=ranked.rows.shape[1],
        recall=tuple(_asked_only(curve, protocol.recall_at) for curve in curves),
        position_errors=tuple(position_errors),
        confidence=None
        if ranked.fixes is None or fix_error is None
        else confidence_report(ranked.fixes, fix_error, groups, protocol.bootstrap),
        statuses=_statuses(ranked, positives[0] > 0),
        no_match_curve=() if ranked.fixes is None else no_match_curve(ranked.fixes, positives[0] > 0, ranked.elsewhere),
        reranking=_reranking(ranked, protocol, ground, positives, first_hit, groups),
        intervals=method,
        notes=(*notes, *group_notes, *_recall_notes(curves)),
    )
    return Evaluation(report, ground, metres, tuple(curves), first_hit, positives, top_error, fix_error)


def evaluation_work(ranked: Ranked, protocol: Protocol) -> int:
    """How much work `evaluate` will report: each query is counted once, then once for each interval over it."""
    answers = 1 if ranked.fixes is None else 2 if ranked.fixes.located is None else 3
    return len(ranked.queries) * (1 + len(protocol.radii_m) + answers)


def _groups(ranked: Ranked, protocol: Protocol) -> tuple[Int64Array, IntervalMethod, list[str]]:
    sessions = list(ranked.sessions or [])
    unnamed = sum(session is None for session in sessions)
    named = len(set(sessions) - {None})
    usable = bool(sessions) and unnamed == 0
    grouping = protocol.grouping or ("session" if usable and named >= FEW_GROUPS else "place")
    if grouping == "session" and not usable:
        missing = f"{unnamed} of {len(sessions)} queries have no session" if sessions else "the queries have no session"
        raise ParameterError(missing, remedy="Give every query a session, or group by place")
    by_session = grouping == "session"
    groups = session_groups(sessions) if by_session else place_groups(ranked.queries, protocol.place_m)
    count = int(np.unique(groups).size)
    method = IntervalMethod(
        level=protocol.bootstrap.level,
        resamples=protocol.bootstrap.resamples,
        seed=protocol.bootstrap.seed,
        grouping=grouping,
        groups=count,
        place_m=None if by_session else protocol.place_m,
    )
    return groups, method, _group_notes(method, sessions=named)


def _group_notes(method: IntervalMethod, sessions: int) -> list[str]:
    notes = []
    if method.groups < FEW_GROUPS:
        drawn = counted(method.groups, method.grouping)
        notes.append(f"Only {drawn} to draw from: with fewer than {FEW_GROUPS} the interval is a guess")
    if method.grouping == "place" and 0 < sessions < FEW_GROUPS:
        source = counted(sessions, "session")
        notes.append(f"The queries come from {source}: the interval says nothing about another day or camera")
    return notes


def _recall_curve(
    ranked: Ranked,
    protocol: Protocol,
    radius_m: float,
    positives: Int64Array,
    first_hit: Int64Array,
    groups: Int64Array,
) -> RadiusReport:
    solvable = positives > 0
    scored = solvable if protocol.convention == "solvable" else np.ones_like(solvable)
    cutoffs = range(1, max(protocol.recall_at) + 1)
    hits = hits_at(first_hit[scored], cutoffs, ranked.rows.shape[1])
    chance = chance_at(positives[scored], len(ranked.database), cutoffs)
    spread = protocol.bootstrap.mean_interval(hits, groups[scored])
    queries = int(scored.sum())
    return RadiusReport(
        radius_m=radius_m,
        solvable=int(solvable.sum()),
        solvable_share=float(solvable.mean()),
        counted=queries,
        groups=int(np.unique(groups[scored]).size),
        median_positives=float(np.median(positives[solvable])) if solvable.any() else None,
        at=tuple(
            RecallAt(
                n=n,
                recall=estimate(hits[:, i].sum() / queries if queries else np.nan, spread[:, i]),
                chance=float(chance[:, i].mean()) if queries else None,
            )
            for i, n in enumerate(cutoffs)
        ),
    )


def _statuses(ranked: Ranked, solvable: NDArray[np.bool_]) -> tuple[StatusReport, ...]:
    found = []
    if ranked.fixes is not None:
        found.append(status_report("solvable queries", ranked.fixes, solvable))
        found.append(status_report("other queries", ranked.fixes, ~solvable))
    if ranked.elsewhere is not None:
        every = np.ones(len(ranked.elsewhere.lat), bool)
        found.append(status_report("photos from elsewhere", ranked.elsewhere, every))
    return tuple(report for report in found if report is not None)


def _asked_only(curve: RadiusReport, recall_at: Sequence[int]) -> RadiusReport:
    return curve.model_copy(update={"at": tuple(entry for entry in curve.at if entry.n in set(recall_at))})


def _errors_by_answer(
    top_error: Float64Array, fix_error: Float64Array | None, fixes: Fixes | None
) -> dict[Answer, Float64Array]:
    errors: dict[Answer, Float64Array] = {"top-1": top_error}
    if fix_error is not None:
        errors["fix"] = fix_error
        if fixes is not None and fixes.located is not None:
            errors["located fix"] = np.where(fixes.located, fix_error, np.nan)
    return errors


def _recall_notes(curves: Sequence[RadiusReport]) -> list[str]:
    return [
        f"No query has a database image within {curve.radius_m:g} m: the recall there means nothing"
        for curve in curves
        if curve.solvable == 0
    ]


def _reranking(
    ranked: Ranked, protocol: Protocol, ground: Ground, positives: Int64Array, first_hit: Int64Array, groups: Int64Array
) -> RerankingReport | None:
    """Compare recall of the same queries before and after; None where nothing was re-ranked.

    Args:
        ranked: after re-ranking, with the rows before.
        protocol: how to count.
        ground: where queries and database lie.
        positives: (radii, Nq) int64, true matches of each query.
        first_hit: (radii, Nq) int64, from `first_hits` of the rows after.
        groups: (Nq,) int64, what the interval draws.
    """
    before = ranked.before
    if before is None:
        return None
    k = ranked.rows.shape[1]
    changes = []
    for place, radius in enumerate(protocol.radii_m):
        solvable = protocol.convention == "solvable"
        scored = positives[place] > 0 if solvable else np.ones(len(groups), bool)
        old = hits_at(first_hits(ground, before.rows, radius)[scored], protocol.recall_at, k).astype(np.float64)
        new = hits_at(first_hit[place][scored], protocol.recall_at, k).astype(np.float64)
        spread = protocol.bootstrap.mean_interval(new - old, groups[scored])
        for column, n in enumerate(protocol.recall_at):
            change = float((new - old)[:, column].mean()) if scored.any() else np.nan
            changes.append(
                RecallChange(
                    radius_m=radius,
                    n=n,
                    before=float(old[:, column].mean()) if scored.any() else None,
                    change=estimate(change, spread[:, column]),
                )
            )
    return RerankingReport(
        top=before.top,
        min_inliers=before.min_inliers,
        moved_share=float((ranked.rows[:, 0] != before.rows[:, 0]).mean()),
        changes=tuple(changes),
    )
