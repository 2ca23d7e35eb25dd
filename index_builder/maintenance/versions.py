"""The versions of an index: what there is, whether it is whole, and which is in force."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from index_builder.version_writer import check_answers
from retrieval.errors import IndexNotFoundError, SightfixError, StoreUnavailableError
from retrieval.index_folder import VERSIONS_NAME, choose_version, current_version, published_versions
from retrieval.place_index import PlaceIndex
from retrieval.place_index_manifest import PlaceIndexManifest
from retrieval.searchable_index import SearchablePlaceIndex
from retrieval.stores.contract import PlaceIndexStore

_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """A published version.

    Attributes:
        version: its name; versions sort by age.
        current: whether it is in force.
        bytes: of the files that it was written as; 0 where its manifest cannot be read.
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
    """All published versions, oldest first; damaged ones are told, not left out.

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
        check_answers(index)
    except StoreUnavailableError:
        raise
    except SightfixError as error:
        return Verdict(version, "opening", str(error))
    files = f"{len(index.manifest.files)} files by their hashes, " if isinstance(index, PlaceIndex) else ""
    checked = f"{files}{index.count} references, self-match"
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


def _summary(store: PlaceIndexStore, name: str, version: str, current: bool) -> VersionSummary:
    try:
        manifest = store.manifest(name, version)
    except StoreUnavailableError:
        raise
    except SightfixError as error:
        return VersionSummary(version, current, 0, None, str(error))
    size = sum(record.size for record in manifest.files.values())
    return VersionSummary(version, current, size, manifest)


def _without_photo(index: SearchablePlaceIndex) -> list[str]:
    missing = []
    for start in range(0, index.count, 4096):
        rows = np.arange(start, min(start + 4096, index.count))
        missing += [reference.id for reference in index.references(rows) if not reference.path.is_file()]
    return missing
