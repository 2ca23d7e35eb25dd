"""Where place indexes lie: ``<indexes>/<name>/versions/<version>/`` and ``<indexes>/<name>/CURRENT``."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from retrieval.artefact import replace_file, storage_errors
from retrieval.errors import IndexNotFoundError, ParameterError

CURRENT_NAME: Final = "CURRENT"
VERSIONS_NAME: Final = "versions"
DEFAULT_INDEXES: Final = Path("indexes")

# Of folders that are no versions yet, or none any more.
TEMPORARY_PREFIX: Final = ".tmp-"
_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_index_name(name: str) -> str:
    """Return the name if it can be a folder's.

    Raises:
        ParameterError: it is empty, too long, or has other characters than letters, digits, ``.``, ``_`` and ``-``.
    """
    if not _NAME_PATTERN.fullmatch(name):
        raise ParameterError(
            f"{name!r} cannot be the name of a place index",
            remedy="Use up to 64 letters, digits, '.', '_' and '-', starting with a letter or digit",
        )
    return name


def published_versions(index_folder: Path) -> list[str]:
    """The versions of an index, oldest first; unfinished ones (hidden folders) are not among them."""
    versions = index_folder / VERSIONS_NAME
    if not versions.is_dir():
        return []
    return sorted(entry.name for entry in versions.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def current_version(index_folder: Path) -> str:
    """The version that CURRENT names.

    Raises:
        IndexNotFoundError: nothing was published there, or CURRENT names a version that does not exist.
    """
    current = index_folder / CURRENT_NAME
    version = _named(index_folder)
    # A version may be pruned between the two looks; then CURRENT names another one by now.
    while _is_missing(index_folder, version) and (now := _named(index_folder)) != version:
        version = now
    if _is_missing(index_folder, version):
        available = published_versions(index_folder)
        raise IndexNotFoundError(
            f"CURRENT names version {version!r}, which does not exist",
            where=str(current),
            remedy=f"Write one of the existing versions into it ({', '.join(available)})"
            if available
            else f"Publish again: sightfix index SPEC --name {index_folder.name}",
            code="version_not_found",
        )
    return version


def current_version_or_none(index_folder: Path) -> str | None:
    """The version that CURRENT names; None also where it names none that exists."""
    try:
        return current_version(index_folder)
    except IndexNotFoundError:
        return None


def activate_version(index_folder: Path, version: str) -> None:
    """Make a published version the current one: an upgrade that was held back, or a rollback.

    Raises:
        IndexNotFoundError: there is no such version (``version_not_found``).
        StorageError: the disk refuses; CURRENT stays as it was.
    """
    available = published_versions(index_folder)
    if version not in available:
        raise version_not_found(index_folder.name, version, available)
    current = index_folder / CURRENT_NAME
    with storage_errors(index_folder):
        before = current.read_bytes() if current.exists() else None
        replace_file(current, f"{version}\n".encode())
        if (index_folder / VERSIONS_NAME / version).is_dir():
            return
        # `prune` was quicker, and had looked at CURRENT before.
        if before is not None:
            replace_file(current, before)
    raise IndexNotFoundError(
        f"the version {version!r} of the index {index_folder.name} was removed at this moment",
        remedy="Choose another; what was current stays so",
        code="version_not_found",
    )


def prune(index_folder: Path, keep: int) -> list[str]:
    """Remove the oldest versions until `keep` remain, as `oldest_versions` chooses them. Returns their names."""
    oldest = oldest_versions(published_versions(index_folder), current_version(index_folder), keep)
    return [version for version in oldest if _remove_version(index_folder, version)]


def find_index(indexes: Path, name: str | None, option: str = "--index") -> Path:
    """The folder of a named index; with no name, the only one there is.

    Args:
        indexes: the folder of all indexes.
        name: of the index.
        option: with which the user names it, for messages.

    Raises:
        IndexNotFoundError: no such index, none at all, or several to choose from.
        ParameterError: the name cannot be an index's.
    """
    return indexes / choose_index(index_names(indexes), name, str(indexes), option)


def index_names(indexes: Path) -> list[str]:
    """The indexes that have a current version, sorted."""
    return sorted(current.parent.name for current in indexes.glob(f"*/{CURRENT_NAME}")) if indexes.is_dir() else []


def choose_index(found: Sequence[str], name: str | None, where: str, option: str) -> str:
    """The name of an index that is there; with no name, the only one.

    Args:
        found: the indexes there are.
        name: of the index.
        where: names the store in messages.
        option: with which the user names an index.

    Raises:
        IndexNotFoundError: no such index, none at all, or several to choose from.
        ParameterError: the name cannot be an index's.
    """
    if name is None:
        if len(found) == 1:
            return found[0]
        raise IndexNotFoundError(
            "there is no place index" if not found else f"there are several place indexes: {', '.join(found)}",
            where=where,
            remedy=f"Choose one with {option} NAME" if found else "Publish one: sightfix index PHOTOS --name NAME",
        )
    if check_index_name(name) not in found:
        raise IndexNotFoundError(
            f"there is no place index {name!r}",
            where=where,
            remedy=f"Choose among {', '.join(found)}" if found else "Publish one: sightfix index PHOTOS --name NAME",
        )
    return name


def choose_version(index: str, available: Sequence[str], version: str) -> str:
    """The whole name of a version of an index, given its beginning.

    Raises:
        IndexNotFoundError: there is no such version (``version_not_found``).
        ParameterError: a name that several versions begin with.
    """
    found = [one for one in available if one == version] or [one for one in available if one.startswith(version)]
    if len(found) > 1:
        raise ParameterError(f"{version!r} begins several versions: {', '.join(found)}", remedy="Write more of it")
    if not found:
        raise version_not_found(index, version, available)
    return found[0]


def version_not_found(
    index: str, version: str, available: Sequence[str], where: str | None = None
) -> IndexNotFoundError:
    """What to raise where an index has no such version."""
    return IndexNotFoundError(
        f"the index {index} has no version {version!r}",
        where=where,
        remedy=f"Choose among {', '.join(available)}" if available else "Publish one first",
        code="version_not_found",
    )


def oldest_versions(published: Sequence[str], current: str, keep: int) -> list[str]:
    """The versions to remove for `keep` to remain.

    Neither the current nor the newest version is ever removed: the newest may be about to become current.

    Args:
        published: oldest first.
        current: which is in force.
        keep: how many may stay, the current one included.
    """
    removable = [version for version in published if version != current]
    oldest = removable[: max(0, len(removable) - max(0, keep - 1))]
    return [version for version in oldest if version != published[-1]]


def _named(index_folder: Path) -> str:
    """What CURRENT says."""
    try:
        return (index_folder / CURRENT_NAME).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise IndexNotFoundError(
            "there is no published place index",
            where=str(index_folder),
            remedy=f"Publish one: sightfix index SPEC --name {index_folder.name}",
        ) from None


def _is_missing(index_folder: Path, version: str) -> bool:
    return not _NAME_PATTERN.fullmatch(version) or not (index_folder / VERSIONS_NAME / version).is_dir()


def _remove_version(index_folder: Path, version: str) -> bool:
    """Whether it was removed by this call: not when it became current meanwhile, or when another process did it."""
    folder = index_folder / VERSIONS_NAME / version
    # Renamed first: a reader finds the version whole or not at all.
    removed = folder.with_name(f"{TEMPORARY_PREFIX}pruned-{version}")
    try:
        folder.rename(removed)
    except FileNotFoundError:
        return False
    if (index_folder / CURRENT_NAME).read_bytes().strip() == version.encode():
        removed.rename(folder)
        return False
    shutil.rmtree(removed, ignore_errors=True)
    return True
