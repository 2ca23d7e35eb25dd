"""From the records of evaluations to the report."""

from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from retrieval.errors import counted
from retrieval.evaluation import Protocol
from retrieval.evaluation.bootstrap import FEW_GROUPS
from retrieval.evaluation.eval_set import Truth
from retrieval.geo import Float64Array
from training.comparison.evaluation import EvaluationRecord
from training.comparison.report import (
    CONTRASTS,
    FAMILIES,
    Column,
    ComparedRow,
    ComparisonReport,
    Contrast,
    Difference,
    Epochs,
    Heat,
    ReportRow,
    hits_by_seed,
    mean_of_known,
    mean_with_interval,
    paired_difference,
    paper_order,
    recall_cells,
)


@dataclass(frozen=True)
class RowRecords:
    """A row with the records of its evaluated seeds.

    Attributes:
        row: which.
        wanted: how many seeds are asked for.
        seeds: those that are evaluated on every set.
        records: by evaluation set, one a seed.
        epochs: one a seed.
    """

    row: ComparedRow
    wanted: int
    seeds: tuple[int, ...]
    records: Mapping[str, Sequence[EvaluationRecord]]
    epochs: tuple[Epochs, ...]

    def with_seed(self, seed: int, found: Mapping[str, EvaluationRecord], epochs: Epochs) -> "RowRecords":
        """The same with one more seed, in order."""
        at = bisect(self.seeds, seed)
        return replace(
            self,
            seeds=(*self.seeds[:at], seed, *self.seeds[at:]),
            records={name: (*there[:at], found[name], *there[at:]) for name, there in self.records.items()},
            epochs=(*self.epochs[:at], epochs, *self.epochs[at:]),
        )


@dataclass(frozen=True)
class ReportBuilder:
    """Makes reports of whatever is evaluated so far.

    Attributes:
        truths: by the name of the evaluation set, in order, all of one protocol.
        baseline: a method, or the label of a row.
    """

    truths: Mapping[str, Truth]
    baseline: str

    @property
    def protocol(self) -> Protocol:
        """How is counted."""
        return next(iter(self.truths.values())).protocol

    def build(
        self,
        rows: Sequence[RowRecords],
        *,
        missing: Sequence[str] = (),
        notes: Sequence[str] = (),
        made_with: Sequence[str] = (),
    ) -> ComparisonReport:
        """The report.

        Args:
            rows: in any order; those without a seed are left out.
            missing: runs that are not there, as text.
            notes: put before those on few places and missing baselines.
            made_with: machine and versions.
        """
        there = {records.row: records for records in rows if records.seeds}
        ordered = [there[row] for row in paper_order(list(there))]
        baselines = self._baselines(ordered)
        return ComparisonReport(
            columns=self._columns(),
            rows=tuple(self._row(records) for records in ordered),
            baseline=self.baseline,
            differences=tuple(self._differences(ordered, baselines)),
            contrasts=tuple(self._contrasts(ordered)),
            protocol=self.protocol,
            missing=tuple(missing),
            notes=(*notes, *self._notes(ordered, baselines)),
            made_with=tuple(made_with),
        )

    def _columns(self) -> tuple[Column, ...]:
        columns = []
        for name, truth in self.truths.items():
            for index, radius in enumerate(self.protocol.radii_m):
                chance = truth.chance(index, self.protocol.recall_at)
                queries, places = int(truth.counted[index].sum()), truth.places(index)
                columns += [
                    Column(name, radius, n, queries, places, float(share))
                    for n, share in zip(self.protocol.recall_at, chance, strict=True)
                ]
        return tuple(columns)

    def _row(self, records: RowRecords) -> ReportRow:
        cells = []
        for name, truth in self.truths.items():
            for index in range(len(self.protocol.radii_m)):
                groups = truth.groups[truth.counted[index]]
                hits = self._hits(records, name, index, self.protocol.recall_at)
                cells += recall_cells(hits, groups, self.protocol.bootstrap)
        heat = {name: self._heat(records.records[name], truth) for name, truth in self.truths.items()}
        return ReportRow(records.row, records.seeds, records.wanted, tuple(cells), heat, records.epochs)

    def _hits(self, records: RowRecords, name: str, radius: int, cutoffs: Sequence[int]) -> Float64Array:
        first = np.array([record.first_hit[radius] for record in records.records[name]], np.int64)
        return hits_by_seed(first, self.truths[name].counted[radius], cutoffs, records.records[name][0].ranked)

    def _first_match(self, records: RowRecords, name: str, radius: int) -> Float64Array:
        """(Qc,) each counted query's share of seeds whose best match is true."""
        return np.asarray(self._hits(records, name, radius, (1,)).mean(axis=0)[:, 0])

    def _family_by_seed(
        self, family: Sequence[RowRecords], seeds: Sequence[int], name: str, radius: int
    ) -> Float64Array:
        """(seeds,) a family's mean recall@1, seed by seed."""
        by_row = []
        for records in family:
            recalls = self._hits(records, name, radius, (1,)).mean(axis=(1, 2))
            by_row.append([recalls[records.seeds.index(seed)] for seed in seeds])
        return np.asarray(np.mean(by_row, axis=0))

    def _heat(self, records: Sequence[EvaluationRecord], truth: Truth) -> Heat:
        rows = np.array(records[0].heat_rows, np.int64)
        if len(rows) == 0 or any(not record.heat_activation for record in records):
            return Heat(None, None)
        groups, bootstrap = truth.groups[rows], self.protocol.bootstrap
        activation, match = (
            mean_of_known(np.array([getattr(record, kind) for record in records], np.float64))
            for kind in ("heat_activation", "heat_match")
        )
        return Heat(mean_with_interval(activation, groups, bootstrap), mean_with_interval(match, groups, bootstrap))

    def _baselines(self, rows: Sequence[RowRecords]) -> dict[str, RowRecords]:
        """The baseline row of each backbone: of several the first."""
        found: dict[str, RowRecords] = {}
        for records in rows:
            if self.baseline in (records.row.method, records.row.label):
                found.setdefault(records.row.backbone, records)
        return found

    def _differences(self, rows: Sequence[RowRecords], baselines: Mapping[str, RowRecords]) -> Iterator[Difference]:
        for records in rows:
            base = baselines.get(records.row.backbone)
            if base is None or base is records:
                continue
            for name, index, radius in self._sets_and_radii():
                points = paired_difference(
                    self._first_match(records, name, index),
                    self._first_match(base, name, index),
                    self.truths[name].groups[self.truths[name].counted[index]],
                    self.protocol.bootstrap,
                )
                yield Difference(records.row, base.row, name, radius, points)

    def _contrasts(self, rows: Sequence[RowRecords]) -> Iterator[Contrast]:
        for backbone in dict.fromkeys(records.row.backbone for records in rows):
            families = {
                family: [r for r in rows if r.row.backbone == backbone and r.row.method in members]
                for family, members in FAMILIES.items()
            }
            for name, index, radius in self._sets_and_radii():
                groups = self.truths[name].groups[self.truths[name].counted[index]]
                for first, second in CONTRASTS:
                    if not families[first] or not families[second]:
                        continue
                    ours, theirs = (
                        np.mean([self._first_match(records, name, index) for records in families[family]], axis=0)
                        for family in (first, second)
                    )
                    points = paired_difference(ours, theirs, groups, self.protocol.bootstrap)
                    members = (_names(families[first]), _names(families[second]))
                    by_seed = self._contrast_by_seed(families[first], families[second], name, index)
                    yield Contrast(first, second, members, backbone, name, radius, points, by_seed)

    def _contrast_by_seed(
        self, first: Sequence[RowRecords], second: Sequence[RowRecords], name: str, radius: int
    ) -> tuple[float, ...]:
        shared = sorted(set.intersection(*(set(records.seeds) for records in (*first, *second))))
        if len(shared) < 2:
            return ()
        ours, theirs = (self._family_by_seed(family, shared, name, radius) for family in (first, second))
        return tuple(float(points) for points in ours - theirs)

    def _sets_and_radii(self) -> Iterator[tuple[str, int, float]]:
        for name in self.truths:
            for index, radius in enumerate(self.protocol.radii_m):
                yield name, index, radius

    def _notes(self, rows: Sequence[RowRecords], baselines: Mapping[str, RowRecords]) -> Iterator[str]:
        for name, truth in self.truths.items():
            if 0 < truth.sessions < FEW_GROUPS:
                yield (
                    f"The queries of {name} come from {counted(truth.sessions, 'session')}: "
                    "intervals say nothing about another day or camera"
                )
            for index, radius in enumerate(self.protocol.radii_m):
                places = truth.places(index)
                if places < FEW_GROUPS:
                    yield (
                        f"The queries of {name} that count at {radius:g} m lie in {counted(places, 'place')}: with "
                        f"fewer than {FEW_GROUPS} to draw from an interval is a guess"
                    )
        for backbone in dict.fromkeys(records.row.backbone for records in rows):
            if backbone not in baselines:
                yield f"No differences on {backbone}: the baseline {self.baseline} is not there (yet)"


def _names(rows: Sequence[RowRecords]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(records.row.method_name for records in rows))
