"""Evaluation sets without photos: references on a parallel, and records of made-up rankings."""

from collections.abc import Sequence
from pathlib import Path

from retrieval.evaluation import Bootstrap, Protocol
from retrieval.evaluation.eval_set import EvalSet, Truth
from retrieval.geo import Position
from retrieval.references.reference import Reference
from training.comparison.evaluation import EvaluationKey, EvaluationRecord
from training.comparison.report import ComparedRow, Epochs
from training.comparison.report_building import RowRecords

METRES_PER_DEGREE = 74_400.0  # of longitude at 48° north, about
PROTOCOL = Protocol(radii_m=(25.0, 10.0), recall_at=(1, 5), grouping="place", bootstrap=Bootstrap(resamples=200))


def at(metres: float, name: str = "", session: str | None = None) -> Reference:
    """A reference so many metres east."""
    name = name or f"{metres:g}"
    return Reference(name, Path(f"{name}.jpg"), Position(48.0, 11.0 + metres / METRES_PER_DEGREE), session=session)


def eval_set(database: Sequence[float], queries: Sequence[float], name: str = "east") -> EvalSet:
    """A set of references by their metres east."""
    return EvalSet(name, tuple(at(m) for m in database), tuple(at(m, f"q{m:g}") for m in queries))


def row(label: str, method: str, backbone: str = "resnet") -> ComparedRow:
    """A row of the table."""
    return ComparedRow(label, method, backbone, "16-D, 64×96", label)


def record(first_hit: Sequence[Sequence[int]], heat: Sequence[float | None] = (), ranked: int = 5) -> EvaluationRecord:
    """First hits by radius and query; heat of the first queries."""
    shares = tuple(heat)
    return EvaluationRecord(
        key=EvaluationKey.of("e", "p", PROTOCOL),
        ranked=ranked,
        first_hit=tuple(tuple(ranks) for ranks in first_hit),
        heat_rows=tuple(range(len(shares))),
        heat_activation=shares,
        heat_match=shares,
    )


def records(
    which: ComparedRow, *by_seed: EvaluationRecord, wanted: int | None = None, name: str = "east"
) -> RowRecords:
    """One evaluation set, one record a seed."""
    seeds = tuple(range(len(by_seed)))
    return RowRecords(which, wanted or len(by_seed), seeds, {name: by_seed}, tuple(Epochs(2, 3) for _ in seeds))


def truth(database: Sequence[float], queries: Sequence[float]) -> Truth:
    """What is right by PROTOCOL."""
    return Truth.of(eval_set(database, queries), PROTOCOL)
