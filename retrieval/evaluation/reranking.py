"""What re-ranking changed: recall of the same queries before and after, and the interval of the difference."""

import numpy as np

from retrieval.evaluation.position_error import estimate
from retrieval.evaluation.positions import Ground, Int64Array
from retrieval.evaluation.protocol import Protocol, Ranked
from retrieval.evaluation.recall import first_hits, hits_at
from retrieval.evaluation.report import RecallChange, RerankingReport


def reranking_report(
    ranked: Ranked, protocol: Protocol, ground: Ground, positives: Int64Array, first_hit: Int64Array, groups: Int64Array
) -> RerankingReport | None:
    """Compare recall with what it was; None where nothing was re-ranked.

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
        counted = positives[place] > 0 if solvable else np.ones(len(groups), bool)
        old = hits_at(first_hits(ground, before.rows, radius)[counted], protocol.recall_at, k).astype(np.float64)
        new = hits_at(first_hit[place][counted], protocol.recall_at, k).astype(np.float64)
        spread = protocol.bootstrap.mean_interval(new - old, groups[counted])
        for column, n in enumerate(protocol.recall_at):
            change = float((new - old)[:, column].mean()) if counted.any() else np.nan
            changes.append(
                RecallChange(
                    radius_m=radius,
                    n=n,
                    before=float(old[:, column].mean()) if counted.any() else None,
                    change=estimate(change, spread[:, column]),
                )
            )
    return RerankingReport(
        top=before.top,
        min_inliers=before.min_inliers,
        moved_share=float((ranked.rows[:, 0] != before.rows[:, 0]).mean()),
        changes=tuple(changes),
    )
