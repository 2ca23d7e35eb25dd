"""The comparison as data, from which table, CSV and figure are drawn: recalls, differences, contrasts, intervals.

Methods stand in the order and the families of the paper (VG-SSL, WACV 2025, its results table).

Seeds are averaged query by query before places are drawn, so an interval says how much the result depends on the
places that happened to be photographed. How much it depends on the seed is the spread over seeds, stated beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation import Bootstrap, Protocol, hits_at
from retrieval.evaluation.positions import Int64Array
from retrieval.geo import Float64Array

UNTRAINED: Final = "untrained"

# In the order of the paper's results table.
METHOD_NAMES: Final[dict[str, str]] = {
    UNTRAINED: "Untrained",
    "triplet": "Triplet",
    "simclr": "SimCLR",
    "mocov2": "MoCov2",
    "byol": "BYOL",
    "simsiam": "SimSiam",
    "barlow_twins": "Barlow Twins",
    "vicreg": "VICReg",
}
CONTRASTIVE: Final = "contrastive"
INFORMATION_MAXIMISING: Final = "information-maximising"
SELF_DISTILLATION: Final = "self-distillation"
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    CONTRASTIVE: ("simclr", "mocov2"),
    INFORMATION_MAXIMISING: ("barlow_twins", "vicreg"),
    SELF_DISTILLATION: ("byol", "simsiam"),
}

# The paper's conclusion: the first of each pair is above the second.
ORDERING: Final = ((CONTRASTIVE, SELF_DISTILLATION), (INFORMATION_MAXIMISING, SELF_DISTILLATION))
CONTRASTS: Final = (*ORDERING, (CONTRASTIVE, INFORMATION_MAXIMISING))


@dataclass(frozen=True, slots=True)
class ComparedRow:
    """A row of the table: one recipe with all its seeds, one checkpoint, or a net before training.

    Attributes:
        label: the recipe's name, the checkpoint's label, or `untrained`.
        method: the objective, or `untrained`.
        backbone: timm's name.
        size: dimensions of the descriptor, height and width of the input, for people.
        folder: a name of its own for files, distinct for each row.
    """

    label: str
    method: str
    backbone: str
    size: str
    folder: str

    @property
    def method_name(self) -> str:
        """The method as the paper writes it."""
        return METHOD_NAMES.get(self.method, self.method)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its bootstrap interval; shares from 0 to 1, or differences of such."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Cell:
    """One recall of one row.

    Attributes:
        recall: mean over seeds and queries.
        seed_min, seed_max: the lowest and the highest seed.
    """

    recall: Interval
    seed_min: float
    seed_max: float


@dataclass(frozen=True, slots=True)
class Column:
    """One number of the table: an evaluation set, a radius and an N.

    Attributes:
        eval_set: its name.
        radius_m: metres.
        n: of recall@N.
        queries: how many count: those with a true match.
        places: how many places these lie in.
        chance: what a random ranking reaches, 0 to 1.
    """

    eval_set: str
    radius_m: float
    n: int
    queries: int
    places: int
    chance: float


@dataclass(frozen=True, slots=True)
class Heat:
    """Condensation: the share of energy in the top 10 % of locations, or None where it cannot be measured."""

    activation: Interval | None
    match: Interval | None


@dataclass(frozen=True, slots=True)
class Epochs:
    """Of one seed: after which epoch the evaluated checkpoint was saved, and how many were trained (None: unknown)."""

    evaluated: int
    trained: int | None


@dataclass(frozen=True, slots=True)
class ReportRow:
    """A row with its numbers.

    Attributes:
        row: which.
        seeds: those that are evaluated.
        wanted: how many are asked for.
        cells: one a column.
        heat: by the name of the evaluation set.
        epochs: one a seed.
    """

    row: ComparedRow
    seeds: tuple[int, ...]
    wanted: int
    cells: tuple[Cell, ...]
    heat: dict[str, Heat]
    epochs: tuple[Epochs, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """How much a row is above the baseline of its backbone at recall@1.

    Attributes:
        row, baseline: which.
        eval_set, radius_m: where.
        points: the difference, in shares.
    """

    row: ComparedRow
    baseline: ComparedRow
    eval_set: str
    radius_m: float
    points: Interval


@dataclass(frozen=True, slots=True)
class Contrast:
    """How much the mean of one family is above that of another at recall@1.

    Attributes:
        first, second: the families.
        members: names of the methods that stand for each of them.
        backbone: of all rows.
        eval_set, radius_m: where.
        points: the difference, in shares.
        by_seed: the difference of each seed that all these rows have, where there are several.
    """

    first: str
    second: str
    members: tuple[tuple[str, ...], tuple[str, ...]]
    backbone: str
    eval_set: str
    radius_m: float
    points: Interval
    by_seed: tuple[float, ...] = ()

    @property
    def verdict(self) -> str | None:
        """Whether the paper's ordering holds; None where the paper states none."""
        if (self.first, self.second) not in ORDERING:
            return None
        if self.points.low > 0:
            return "the paper's ordering holds"
        if self.points.high < 0:
            return "the paper's ordering is reversed"
        return "undecided: the interval holds 0"


@dataclass(frozen=True)
class ComparisonReport:
    """Everything a comparison found so far.

    Attributes:
        columns: of the table.
        rows: in the paper's order; rows without any evaluated seed are left out.
        baseline: the method or label that differences are to.
        differences, contrasts: as far as the rows allow them.
        protocol: how it was counted.
        missing: runs that are asked for and not there, as text.
        notes: what a reader must know.
        made_with: machine and versions.
    """

    columns: tuple[Column, ...]
    rows: tuple[ReportRow, ...]
    baseline: str
    differences: tuple[Difference, ...]
    contrasts: tuple[Contrast, ...]
    protocol: Protocol
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    made_with: tuple[str, ...]

    @property
    def eval_sets(self) -> list[str]:
        """Names of the evaluation sets, in order."""
        return list(dict.fromkeys(column.eval_set for column in self.columns))


def family_of(method: str) -> str | None:
    """The family of a method, or None for the triplet baseline and the untrained net."""
    return next((name for name, members in FAMILIES.items() if method in members), None)


def paper_order(rows: list[ComparedRow]) -> list[ComparedRow]:
    """Rows by backbone, in the order in which these come first, and within a backbone in the paper's order."""
    backbones = list(dict.fromkeys(row.backbone for row in rows))
    methods = list(METHOD_NAMES)
    place = {method: index for index, method in enumerate(methods)}
    return sorted(rows, key=lambda row: (backbones.index(row.backbone), place.get(row.method, len(methods))))


def hits_by_seed(
    first_hit: Int64Array, counted: NDArray[np.bool_], cutoffs: Sequence[int], ranked: int
) -> Float64Array:
    """Whether each counted query has a true match among its first N, by seed.

    Args:
        first_hit: (S, Nq) int64, rank of the first true match by seed, `ranked` where there is none.
        counted: (Nq,) whether the query counts.
        cutoffs: the Ns.
        ranked: how many matches were ranked.

    Returns:
        (S, Qc, len(cutoffs)) float64, 0 or 1.
    """
    hits = [hits_at(seed[counted], cutoffs, ranked) for seed in first_hit]
    return np.asarray(np.stack(hits), np.float64)


def recall_cells(hits: Float64Array, groups: Int64Array, bootstrap: Bootstrap) -> list[Cell]:
    """Recall at each N: mean over seeds and queries, its interval over places, and the spread over seeds.

    Args:
        hits: (S, Qc, M) from `hits_by_seed`.
        groups: (Qc,) the place of each query.
        bootstrap: how intervals are drawn.
    """
    per_query = hits.mean(axis=0)
    low, high = bootstrap.mean_interval(per_query, groups)
    value = per_query.mean(axis=0)
    seeds = hits.mean(axis=1)
    return [
        Cell(Interval(float(v), float(lo), float(hi)), float(smallest), float(largest))
        for v, lo, hi, smallest, largest in zip(value, low, high, seeds.min(axis=0), seeds.max(axis=0), strict=True)
    ]


def mean_with_interval(values: Float64Array, groups: Int64Array, bootstrap: Bootstrap) -> Interval | None:
    """The mean of one value a query, NaN left out; None when nothing is left.

    Args:
        values: (Q,) float64.
        groups: (Q,) the place of each query.
        bootstrap: how intervals are drawn.
    """
    known = np.isfinite(values)
    if not known.any():
        return None
    low, high = bootstrap.mean_interval(values[known][:, None], groups[known])[:, 0]
    return Interval(float(values[known].mean()), float(low), float(high))


def paired_difference(ours: Float64Array, theirs: Float64Array, groups: Int64Array, bootstrap: Bootstrap) -> Interval:
    """How much one row is above another on the same queries: the interval is of the differences by query.

    Pairing takes away what both have in common, such as hard queries: the interval is narrower than that of either.

    Args:
        ours, theirs: (Q,) float64, each query's mean over seeds.
        groups: (Q,) the place of each query.
        bootstrap: how intervals are drawn.
    """
    difference = ours - theirs
    low, high = bootstrap.mean_interval(difference[:, None], groups)[:, 0]
    return Interval(float(difference.mean()), float(low), float(high))


def mean_of_known(values: Float64Array) -> Float64Array:
    """(S, Q) → (Q,) mean over seeds, NaN left out, without a warning where all are NaN."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))
