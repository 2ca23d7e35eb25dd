"""What changed from one version of an index to another."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa

from retrieval.geo import haversine_m
from retrieval.place_index import REFERENCES_NAME, PlaceIndex
from retrieval.reference_table import read_references

Kind = Literal["added", "removed", "moved", "described again"]

# Where photos were not hashed: a descriptor stored again is the same bit by bit; one described again differs.
_SAME: Final = 1e-6
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a reference.

    Attributes:
        id: of it.
        kind: what happened; a reference that moved and was described again is told as moved.
        metres: how far it moved, else None.
        similarity: cosine of its descriptors before and after, None where there is none or they cannot be compared.
    """

    id: str
    kind: Kind
    metres: float | None = None
    similarity: float | None = None


@dataclass(frozen=True, slots=True)
class VersionDifference:
    """All changes from one version to another.

    Attributes:
        before, after: the versions' names.
        unchanged: how many references are the same in both.
        changes: in the order of ids.
        comparable: whether both were described by the same bundle and whitened alike.
    """

    before: str
    after: str
    unchanged: int
    changes: tuple[Change, ...]
    comparable: bool

    def count(self, kind: Kind) -> int:
        """How many changes of a kind."""
        return sum(change.kind == kind for change in self.changes)


def compare_versions(before: Path, after: Path, *, moved_m: float = 0.5) -> VersionDifference:
    """Compare two versions, reference by reference.

    Args:
        before, after: folders of versions.
        moved_m: positions nearer than this are the same.

    Raises:
        PlaceIndexError: one of them cannot be opened.
    """
    old, new = PlaceIndex.open(before, memory_map=True), PlaceIndex.open(after, memory_map=True)
    tables = [read_references(index.folder / REFERENCES_NAME) for index in (old, new)]
    ids = [table["id"].to_pylist() for table in tables]
    contents = [table["content_sha256"].to_pylist() for table in tables]
    row_of = {name: row for row, name in enumerate(ids[0])}
    shared = [(row_of[name], row, name) for row, name in enumerate(ids[1]) if name in row_of]
    changes = [Change(name, "added") for name in ids[1] if name not in row_of]
    there = set(ids[1])
    changes += [Change(name, "removed") for name in ids[0] if name not in there]
    comparable = _comparable(old, new)
    unchanged = 0
    for start in range(0, len(shared), _BLOCK):
        some = shared[start : start + _BLOCK]
        rows, new_rows = (np.array([one[place] for one in some], np.int64) for place in (0, 1))
        metres = haversine_m(old.lat[rows], old.lon[rows], new.lat[new_rows], new.lon[new_rows])
        alike = np.full(len(some), np.nan)
        if comparable:
            pair = old.descriptors(rows), new.descriptors(new_rows)
            # The steps of int8 are chosen for each version: the same photo, stored again, differs a little.
            same = np.array([contents[0][a] == contents[1][b] is not None for a, b, _ in some])
            same |= np.abs(pair[0] - pair[1]).max(axis=1) <= _SAME
            alike = np.where(same, 1.0, (pair[0] * pair[1]).sum(axis=1))
        for (_, _, name), far, cosine in zip(some, metres, alike, strict=True):
            similarity = None if np.isnan(cosine) else float(min(cosine, 1.0))
            if far > moved_m:
                changes.append(Change(name, "moved", float(far), similarity))
            elif similarity is not None and cosine != 1.0:
                changes.append(Change(name, "described again", None, similarity))
            else:
                unchanged += 1
    ordered = tuple(sorted(changes, key=lambda change: change.id))
    return VersionDifference(before.name, after.name, unchanged, ordered, comparable)


def as_table(difference: VersionDifference) -> pa.Table:
    """All changes, a row each: id, change, metres, similarity."""
    changes = difference.changes
    return pa.table(
        {
            "id": [change.id for change in changes],
            "change": [change.kind for change in changes],
            "metres": pa.array([change.metres for change in changes], pa.float64()),
            "similarity": pa.array([change.similarity for change in changes], pa.float64()),
        }
    )


def _comparable(old: PlaceIndex, new: PlaceIndex) -> bool:
    ours, theirs = old.manifest, new.manifest
    if ours.bundle.fingerprint != theirs.bundle.fingerprint or ours.storage != theirs.storage:
        return False
    if old.whitening is None or new.whitening is None:
        return old.whitening is new.whitening
    return np.array_equal(old.whitening.projection, new.whitening.projection)
