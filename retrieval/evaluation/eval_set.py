"""Evaluation sets: a database, the queries to find in it, and what is right by their positions."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ParameterError, counted
from retrieval.evaluation.bootstrap import place_groups
from retrieval.evaluation.positions import Ground, Int64Array, Positions, chance_at, count_positives, true_ground
from retrieval.evaluation.protocol import Protocol
from retrieval.geo import Float64Array
from retrieval.index.sampling import evenly_spaced
from retrieval.references.reference import Reference

# A photo trained on and a query this near to each other very likely show the same place.
OVERLAP_M: Final = 25.0


@dataclass(frozen=True)
class EvalSet:
    """Photos to measure recall on.

    Attributes:
        name: for people, and for files.
        database: photos to find.
        queries: photos to localize.
    """

    name: str
    database: tuple[Reference, ...]
    queries: tuple[Reference, ...]

    def identity(self) -> str:
        """SHA-256 in hex of all ids and positions, in order."""
        digest = hashlib.sha256()
        for part in (self.database, self.queries):
            for reference in part:
                digest.update(f"{reference.id}\n{reference.position}\n{reference.plane_m}\n".encode())
            digest.update(b"\0")
        return digest.hexdigest()


@dataclass(frozen=True)
class Truth:
    """What is right for the queries of an evaluation set, by positions alone.

    Attributes:
        protocol: how it is counted; the convention is `solvable`: only queries with a true match count.
        ground: where queries and database lie.
        positives: (radii, Nq) int64, true matches of each query in the database.
        groups: (Nq,) int64, the place of each query, which intervals draw as a whole.
        sessions: how many sessions the queries come from; 0 when unknown.
    """

    protocol: Protocol
    ground: Ground
    positives: Int64Array
    groups: Int64Array
    sessions: int

    @classmethod
    def of(cls, photos: EvalSet, protocol: Protocol) -> Self:
        """Count what is right.

        Raises:
            ParameterError: no query has a true match within one of the radii.
            ParameterError: queries and database share no kind of position.
        """
        if not photos.database or not photos.queries:
            raise ParameterError(
                f"{counted(len(photos.queries), 'query')} and {counted(len(photos.database), 'database photo')}: "
                "nothing to evaluate",
                where=f"evaluation set {photos.name}",
                remedy="Check folder and filters with: sightfix inspect SPEC",
            )
        queries = Positions.from_references(photos.queries)
        ground = true_ground(queries, Positions.from_references(photos.database))
        positives = count_positives(ground, protocol.radii_m)
        for radius, counts in zip(protocol.radii_m, positives, strict=True):
            if not counts.any():
                raise ParameterError(
                    f"none of the {len(photos.queries)} queries has a database photo within {radius:g} m",
                    where=f"evaluation set {photos.name}",
                    remedy="Give database and queries of one area, or a larger --radius",
                    code="not_solvable",
                )
        known = {query.session for query in photos.queries} - {None}
        return cls(protocol, ground, positives, place_groups(queries, protocol.place_m), len(known))

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(radii, Nq): whether a query has a true match at all."""
        return self.positives > 0

    def chance(self, radius: int, cutoffs: Sequence[int]) -> Float64Array:
        """What a random ranking reaches on the counted queries.

        Args:
            radius: which of the protocol's.
            cutoffs: the Ns.

        Returns:
            (len(cutoffs),) float64, 0 to 1.
        """
        counts = self.positives[radius]
        return np.asarray(chance_at(counts[counts > 0], len(self.ground.database), cutoffs).mean(axis=0))

    def places(self, radius: int) -> int:
        """How many places the counted queries lie in."""
        return int(np.unique(self.groups[self.counted[radius]]).size)

    def sample(self, count: int) -> Int64Array:
        """Rows of at most `count` queries that count at the first radius, evenly taken."""
        rows = np.flatnonzero(self.counted[0])
        return rows[evenly_spaced(len(rows), count)]

    def nearest(self, queries: Int64Array) -> Int64Array:
        """The database row nearest to each of some queries; of several equally near ones the first."""
        every = np.arange(len(self.ground.database))
        return np.array([self.ground.squared(np.array([row]), every).argmin() for row in queries], np.int64)


def overlap(training: Sequence[Reference], photos: EvalSet) -> int | None:
    """How many training photos lie within 25 m of a query; None where positions cannot be compared."""
    try:
        ground = true_ground(Positions.from_references(training), Positions.from_references(photos.queries))
    except ParameterError:
        return None
    return int((count_positives(ground, [OVERLAP_M])[0] > 0).sum())
