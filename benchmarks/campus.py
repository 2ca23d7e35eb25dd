"""The bgu_campus photos and their two protocols without training: cross-phone and day-night."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.indexing_throughput import PHOTOS
from index_builder.describing import DescribeSettings, describe_references
from retrieval.bundle import Bundle
from retrieval.bundle.adaptation import adapt_bundle, photos_to_fit
from retrieval.describer import Describer, Descriptors
from retrieval.evaluation import Positions, Protocol, Ranked, evaluate, exact_ranking
from retrieval.evaluation.report import Convention, EvaluationReport
from retrieval.geo import Position
from retrieval.images import read_image
from retrieval.references.reference import Reference

PROTOCOLS = {"cross-phone": ("phoneA", "phoneB"), "day-night": ("day", "night")}


@dataclass(frozen=True)
class Campus:
    """The described campus."""

    references: list[Reference]
    descriptors: Descriptors
    sessions: NDArray[np.str_] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sessions", np.array([reference.session for reference in self.references]))

    def split(self, protocol: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the database and of the queries."""
        database, queries = PROTOCOLS[protocol]
        return tuple(np.flatnonzero(np.char.find(self.sessions, part) >= 0) for part in (database, queries))  # type: ignore[return-value]

    def positions(self, rows: NDArray[np.int64]) -> Positions:
        """Where some rows lie."""
        return Positions.from_references([self.references[row] for row in rows])

    def evaluate(
        self, protocol: str, radii_m: tuple[float, ...] = (25.0,), convention: Convention = "solvable"
    ) -> EvaluationReport:
        """Recall of one protocol, with intervals over places."""
        database, queries = self.split(protocol)
        rows, _ = exact_ranking(self.descriptors[database], self.descriptors[queries], 20)
        ranked = Ranked(self.positions(database), self.positions(queries), rows)
        return evaluate(ranked, Protocol(radii_m=radii_m, convention=convention, grouping="place")).report


def campus_references(root: Path = PHOTOS, name: str = "bgu_campus") -> list[Reference]:
    """The rows of a set's images.csv."""
    folder = root / name
    with (folder / "images.csv").open(encoding="utf-8-sig") as file:
        return [
            Reference(
                id=row["path"],
                path=folder / row["path"],
                position=Position(float(row["lat"]), float(row["lon"])),
                session=row["session"],
            )
            for row in csv.DictReader(file)
        ]


def describe_campus(describer: Describer, root: Path = PHOTOS) -> Campus:
    """Describe all 1,475 photos."""
    described = describe_references(campus_references(root), describer, DescribeSettings(batch_size=32))
    return Campus(described.references, described.descriptors)


def adapted_to(bundle: Bundle, references: Sequence[Reference], folder: Path) -> Bundle:
    """A bundle adapted to photos, chosen and in the order as `sightfix index` does."""
    positions = Positions.from_references(references)
    assert positions.lat is not None
    assert positions.lon is not None
    rows = photos_to_fit(positions.lat, positions.lon)
    chosen = [read_image(references[row].path, bundle.preprocessing) for row in rows]
    batches = (np.stack(chosen[begin : begin + 16]) for begin in range(0, len(chosen), 16))
    return adapt_bundle(bundle, batches, folder, "a benchmark")
