"""Recall on photos set aside: the number by which training chooses its best checkpoint, and ends."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.errors import SightfixError
from retrieval.evaluation import Bootstrap, EvaluationReport, Positions, Protocol, Ranked, evaluate, exact_ranking
from training.collapse import CollapseReport, measure_collapse
from training.describing import describe_cached
from training.encoder import Encoder
from training.photo_cache import PhotoCache

_RECALL_AT: Final = (1, 5, 10)
_FEWEST_TO_JUDGE: Final = 8


class ValidationError(SightfixError):
    """Photos that recall cannot be measured on."""

    default_code = "validation_photos"


@dataclass(frozen=True)
class Measured:
    """What one validation found.

    Attributes:
        report: recall@1, 5 and 10 with chance and intervals.
        collapse: how the database's descriptors fill their space; None with too few photos.
    """

    report: EvaluationReport
    collapse: CollapseReport | None

    def recalls(self) -> dict[str, float]:
        """Recall by N, such as `R@1`, 0 to 1."""
        return {f"R@{at.n}": float(at.recall.value or 0.0) for at in self.report.recall[0].at}


@dataclass(frozen=True)
class Validation:
    """A database and queries, decoded once.

    Attributes:
        database, queries: their photos.
        radius_m: a match within this distance is a true one.
    """

    database: PhotoCache
    queries: PhotoCache
    radius_m: float

    def measure(self, encoder: Encoder, on_progress: Callable[[int], None] | None = None) -> Measured:
        """Describe all photos with the encoder as it is, rank exactly, count as `retrieval.evaluation` does.

        Raises:
            ValidationError: no query has a true match in the database.
        """
        database = describe_cached(encoder, self.database, np.arange(len(self.database)), on_progress=on_progress)
        queries = describe_cached(encoder, self.queries, np.arange(len(self.queries)), on_progress=on_progress)
        collapse = None
        if len(database) >= _FEWEST_TO_JUDGE:
            collapse = measure_collapse(torch.from_numpy(_spread_over(database)))
        if not (np.isfinite(database).all() and np.isfinite(queries).all()):
            raise ValidationError(
                "the net's descriptors are not finite: training has diverged",
                remedy="Lower optimiser.learning_rate, set training.clip_norm, or train in bf16 or fp32",
                code="diverged",
            )
        rows, _ = exact_ranking(database, queries, min(max(_RECALL_AT), len(database)))
        ranked = Ranked(
            Positions.from_references(self.database.references),
            Positions.from_references(self.queries.references),
            rows,
        )
        protocol = Protocol(
            radii_m=(self.radius_m,), recall_at=_RECALL_AT, grouping="place", bootstrap=Bootstrap(resamples=500)
        )
        report = evaluate(ranked, protocol).report
        if report.recall[0].counted == 0:
            raise ValidationError(
                f"none of the {len(self.queries)} validation queries has a database photo within {self.radius_m:g} m",
                remedy="Give --validation-database and --validation-queries of one area, or --hold-out 0",
            )
        return Measured(report, collapse)

    @property
    def photos(self) -> int:
        """How many photos are described for one measurement."""
        return len(self.database) + len(self.queries)


def _spread_over(descriptors: NDArray[np.float32], count: int = 512) -> NDArray[np.float32]:
    """At most `count` rows, evenly through the photos: neighbours in order show the same place."""
    step = max(1, len(descriptors) // count)
    return np.ascontiguousarray(descriptors[::step][:count])
