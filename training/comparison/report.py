"""The comparison as data: what table, CSV and figure are drawn from."""

from dataclasses import dataclass

from retrieval.evaluation import Protocol
from training.comparison.methods import ORDERING, ComparedRow
from training.comparison.statistics import Cell, Interval


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
        missing: runs that are asked for and not there, in words.
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
