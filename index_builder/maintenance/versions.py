"""The versions of an index: what there is, whether it is whole, and which is in force."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from index_builder.version_writer import check_answers
from retrieval.errors import IndexNotFoundError, SightfixError
from retrieval.index_folder import VERSIONS_NAME, choose_version, current_version, published_versions
from retrieval.place_index import PlaceIndex
from retrieval.place_index_manifest import PlaceIndexManifest

_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """A published version.

    Attributes:
        version: its name; versions sort by age.
        current: whether it is in force.
        bytes: of its files.
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


def list_versions(index_folder: Path) -> list[VersionSummary]:
    """All published versions, oldest first; damaged ones are told, not left out.

    Raises:
        IndexNotFoundError: there is none.
    """
    names = published_versions(index_folder)
    if not names:
        raise IndexNotFoundError(
            "there is no published place index",
            where=str(index_folder),
            remedy=f"Publish one: sightfix index SPEC --name {index_folder.name}",
        )
    current = _current_or_none(index_folder)
    return [_summary(index_folder / VERSIONS_NAME / name, name == current) for name in names]


def verify_version(folder: Path, *, photos: bool = False) -> Verdict:
    """Compare every file of a version with its hash, open it, and ask it for some of its own references.

    Args:
        folder: of the version.
        photos: also look whether every reference's photo is still there.
    """
    try:
        index = PlaceIndex.open(folder)
        check_answers(index)
    except SightfixError as error:
        return Verdict(folder.name, "opening", str(error))
    checked = f"{len(index.manifest.files)} files by their hashes, {index.count} references, self-match"
    if not photos:
        return Verdict(folder.name, checked, None)
    missing = _without_photo(index)
    return Verdict(folder.name, f"{checked}, photos", None, len(missing), tuple(missing[:_NAMED]))


def find_version(index_folder: Path, version: str | None) -> Path:
    """The folder of a version; of the current one where none is named.

    Raises:
        IndexNotFoundError: nothing is published, or there is no such version.
        ParameterError: a name that several versions begin with.
    """
    if version is None:
        return index_folder / VERSIONS_NAME / current_version(index_folder)
    return index_folder / VERSIONS_NAME / choose_version(index_folder.name, published_versions(index_folder), version)


def _current_or_none(index_folder: Path) -> str | None:
    try:
        return current_version(index_folder)
    except IndexNotFoundError:
        return None


def _summary(folder: Path, current: bool) -> VersionSummary:
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    try:
        manifest = PlaceIndexManifest.read(folder)
    except SightfixError as error:
        return VersionSummary(folder.name, current, size, None, str(error))
    return VersionSummary(folder.name, current, size, manifest)


def _without_photo(index: PlaceIndex) -> list[str]:
    missing = []
    for start in range(0, index.count, 4096):
        rows = np.arange(start, min(start + 4096, index.count))
        missing += [reference.id for reference in index.references(rows) if not reference.path.is_file()]
    return missing
