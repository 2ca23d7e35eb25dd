"""The versions of an index: what there is, whether it is whole, which is current, and how two of them differ."""

import contextlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow as pa

from index_builder.quality import check_stored
from retrieval.errors import IndexNotFoundError, SightfixError, StoreUnavailableError, counted
from retrieval.geo import haversine_m
from retrieval.index.folder import VERSIONS_NAME, choose_version, current_version, published_versions
from retrieval.index.manifest import PlaceIndexManifest
from retrieval.index.place_index import REFERENCES_NAME, PlaceIndex
from retrieval.index.reference_table import read_references
from retrieval.index.searchable import PlaceIndexStore, SearchablePlaceIndex
from retrieval.index.stores import FolderStore

_NAMED: Final = 5

# Positions nearer than this are the same.
_MOVED_M: Final = 0.5
Kind = Literal["added", "removed", "moved", "described again"]

# Where photos were not hashed: a descriptor stored again is the same bit by bit; one described again differs.
_SAME: Final = 1e-6
_BLOCK: Final = 4096


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """A published version.

    Attributes:
        version: its name; versions sort by age.
        current: whether it is in force.
        bytes: of all its files, those of the bundle that it holds too, also where other versions hold the same ones;
            see `bytes_on_disk`. In another store than a folder, of the files that it was written as. 0 where its
            manifest cannot be read.
        manifest: None where it cannot be read.
        problem: why, or None.
    """

    version: str
    current: bool
    bytes: int
    manifest: PlaceIndexManifest | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found out about a version.

    Attributes:
        version: its name.
        checked: what was looked at, in words.
        problem: what is wrong, with its remedy, or None.
        missing_photos: references whose photo is not where it was indexed; 0 where that was not asked.
        missing: some of their ids.
    """

    version: str
    checked: str
    problem: str | None
    missing_photos: int = 0
    missing: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether it can serve."""
        return self.problem is None


def list_versions(store: PlaceIndexStore, name: str) -> list[VersionSummary]:
    """All published versions, oldest first; damaged ones are listed, too.

    Raises:
        IndexNotFoundError: there is none.
        StoreUnavailableError: the store cannot be asked.
    """
    names = store.versions(name)
    if not names:
        raise IndexNotFoundError(
            f"there is no published place index {name!r}",
            where=store.where,
            remedy=f"Publish one: sightfix index SPEC --name {name}",
        )
    try:
        current = store.current(name)
    except IndexNotFoundError:
        current = None
    return [_summary(store, name, version, version == current) for version in names]


def bytes_on_disk(store: PlaceIndexStore, name: str) -> int | None:
    """What all versions of an index take together: files that several of them hold, such as a bundle's, count once.

    Returns:
        None for another store than a folder.
    """
    if not isinstance(store, FolderStore):
        return None
    states = [state for version in store.versions(name) for state in _states(store, name, version)]
    return sum({(state.st_dev, state.st_ino): state.st_size for state in states}.values())


def verify_version(store: PlaceIndexStore, name: str, version: str, *, photos: bool = False) -> Verdict:
    """Open a version, which compares every file with its hash or counts the rows, and ask it for its own references.

    Args:
        store: of the index; a `FolderStore` must not map memory, which leaves hashes out.
        name: of the index.
        version: its whole name.
        photos: also look whether every reference's photo is still there.
    """
    try:
        index = store.open(name, version)
        check_stored(index)
        bundle = "" if index.held_bundle() is None else "its bundle, "
    except StoreUnavailableError:
        raise
    except SightfixError as error:
        return Verdict(version, "opening", str(error))
    files = f"{counted(len(index.manifest.files), 'file')} by hash, " if isinstance(index, PlaceIndex) else ""
    checked = f"{files}{bundle}{counted(index.count, 'reference')}, self-match"
    if not photos:
        return Verdict(version, checked, None)
    missing = _without_photo(index)
    return Verdict(version, f"{checked}, photos", None, len(missing), tuple(missing[:_NAMED]))


def find_version(index_folder: Path, version: str | None) -> Path:
    """The folder of a version; of the current one where none is named.

    Raises:
        IndexNotFoundError: nothing is published, or there is no such version.
        ParameterError: a name that several versions begin with.
    """
    if version is None:
        return index_folder / VERSIONS_NAME / current_version(index_folder)
    return index_folder / VERSIONS_NAME / choose_version(index_folder.name, published_versions(index_folder), version)


@dataclass(frozen=True, slots=True)
class Change:
    """What became of a reference.

    Attributes:
        id: of it.
        kind: what happened; a reference that moved and was described again counts as moved.
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


def compare_versions(before: Path, after: Path) -> VersionDifference:
    """Compare two versions, reference by reference.

    Args:
        before, after: folders of versions.

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
            if far > _MOVED_M:
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


def _summary(store: PlaceIndexStore, name: str, version: str, current: bool) -> VersionSummary:
    try:
        manifest = store.manifest(name, version)
    except StoreUnavailableError:
        raise
    except SightfixError as error:
        return VersionSummary(version, current, 0, None, str(error))
    if isinstance(store, FolderStore):
        size = sum(state.st_size for state in _states(store, name, version))
    else:
        size = sum(record.size for record in manifest.files.values())
    return VersionSummary(version, current, size, manifest)


def _states(store: FolderStore, name: str, version: str) -> list[os.stat_result]:
    """Of all files of a version."""
    states = []
    for path in (store.indexes / name / VERSIONS_NAME / version).rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the version is being removed
            states.append(path.stat())
    return [state for state in states if stat.S_ISREG(state.st_mode)]


def _without_photo(index: SearchablePlaceIndex) -> list[str]:
    missing = []
    for start in range(0, index.count, 4096):
        rows = np.arange(start, min(start + 4096, index.count))
        missing += [reference.id for reference in index.references(rows) if not reference.path.is_file()]
    return missing


def _comparable(old: PlaceIndex, new: PlaceIndex) -> bool:
    ours, theirs = old.manifest, new.manifest
    if ours.bundle.fingerprint != theirs.bundle.fingerprint or ours.storage != theirs.storage:
        return False
    if old.whitening is None or new.whitening is None:
        return old.whitening is new.whitening
    return np.array_equal(old.whitening.projection, new.whitening.projection)
