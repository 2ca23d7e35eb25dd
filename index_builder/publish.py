"""The publish protocol: a version is written aside, checked, renamed, and only then named by CURRENT.

Killed at any point, the last published version stays whole and current; leftovers are removed by the next build.
"""

import contextlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from retrieval.artefact import (
    FileRecord,
    can_link,
    flush_to_disk,
    hash_file,
    link_or_copy,
    rename_into_place,
    replace_file,
    storage_errors,
    verify_files,
)
from retrieval.bundle import HELD_NAME, Bundle
from retrieval.errors import BundleError, SightfixError, StorageError
from retrieval.index.folder import (
    CURRENT_NAME,
    TEMPORARY_PREFIX,
    VERSIONS_NAME,
    check_index_name,
    current_version_or_none,
    prune,
    published_versions,
)
from retrieval.index.place_index import PlaceIndex

DEFAULT_KEEP: Final = 3

# What was described for a version that is not written yet.
WORK_NAME: Final = ".work"
_LOCK_NAME: Final = ".lock"


@dataclass(frozen=True, slots=True)
class VersionDraft:
    """A version that is being written.

    Attributes:
        index_folder: of the index.
        version: the name it will have.
        folder: where to write it until it gets its name.
        activate: whether it is to become current; else it stays beside the current one once it has its name.
    """

    index_folder: Path
    version: str
    folder: Path
    activate: bool = True

    @property
    def published_folder(self) -> Path:
        """Of the version once it has its name."""
        return self.index_folder / VERSIONS_NAME / self.version

    def name_version(self) -> None:
        """First step: the finished version gets its name; readers still see the old one."""
        rename_into_place(self.folder, self.published_folder)

    def make_current(self) -> None:
        """Second step: CURRENT names the version."""
        replace_file(self.index_folder / CURRENT_NAME, f"{self.version}\n".encode())


@contextlib.contextmanager
def draft_version(indexes: Path, name: str, *, activate: bool = True) -> Iterator[VersionDraft]:
    """Open a draft of a new version; whatever is not published is removed at the end.

    Args:
        indexes: the folder of all indexes.
        name: of this index.
        activate: whether the version is to become current.

    Raises:
        ParameterError: the name cannot be a folder's.
        StorageError: another process is building this index, or the disk refuses.
    """
    index_folder = indexes / check_index_name(name)
    versions = index_folder / VERSIONS_NAME
    with storage_errors(index_folder), _exclusive(index_folder):
        versions.mkdir(exist_ok=True)
        _remove_leftovers(index_folder)
        version = _new_version_name()
        folder = versions / f"{TEMPORARY_PREFIX}{version}"
        folder.mkdir()
        draft = VersionDraft(index_folder, version, folder, activate)
        try:
            yield draft
        finally:
            _remove_unpublished(draft)
            _remove_if_nothing_published(index_folder)


def hold_bundle(version_folder: Path, bundle: Bundle) -> None:
    """Write a bundle into a version that is being written, flushed to the disk.

    A file that a version beside it holds, just so, is linked to it, where the disk has links; others are copied.
    Engines that were compiled of the bundle stay where they are.

    Args:
        version_folder: of the version.
        bundle: that described its references.

    Raises:
        BundleError: a file of the bundle has changed since it was opened, or is gone.
        OSError: the disk refuses.
    """
    held = version_folder / HELD_NAME
    held.mkdir(exist_ok=True)
    for name, record in bundle.manifest.files.items():
        target = held / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not _link_held(version_folder.parent, name, record, target):
            try:
                source = (bundle.folder / name).open("rb")
            except OSError as error:
                raise BundleError(
                    f"the file cannot be read ({error.strerror})",
                    where=str(bundle.folder / name),
                    remedy="Leave a bundle in its place while photos are described with it; then begin again",
                ) from error
            with source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
        flush_to_disk(target)
        if target.parent != held:
            flush_to_disk(target.parent)
    verify_files(held, bundle.manifest.files, error_type=BundleError)
    bundle.manifest.write(held)
    flush_to_disk(held)


def bytes_not_held(versions: Path, bundle: Bundle) -> int:
    """How much `hold_bundle` will have to copy: what no version holds, and everything where the disk has no links.

    Args:
        versions: the folder of an index's versions.
        bundle: that will be held.

    Raises:
        OSError: the disk refuses.
    """

    def is_linked(name: str, record: FileRecord) -> bool:
        held = next(_held_files(versions, name, record), None)
        with contextlib.suppress(FileNotFoundError):  # pruned at this moment
            return held is not None and can_link(held, versions)
        return False

    return sum(record.size for name, record in bundle.manifest.files.items() if not is_linked(name, record))


def _link_held(versions: Path, name: str, record: FileRecord, target: Path) -> bool:
    """Link a file to the same one of another version; whether there was one."""
    for path in _held_files(versions, name, record):
        with contextlib.suppress(FileNotFoundError):  # pruned at this moment
            if hash_file(path) == record.sha256:
                link_or_copy(path, target)
                return True
    return False


def _held_files(versions: Path, name: str, record: FileRecord) -> Iterator[Path]:
    """The files of this name and size that published versions hold in their bundles, newest first."""
    for version in sorted(versions.glob(f"[!.]*/{HELD_NAME}"), reverse=True):
        path = version / name
        with contextlib.suppress(OSError):
            if path.stat().st_size == record.size:
                yield path


def finish_publishing(indexes: Path, name: str, version: str, *, base: str | None, activate: bool) -> bool:
    """Bring a publish that was killed after its last check to its end.

    Args:
        indexes: the folder of all indexes.
        name: of this index.
        version: the one that was about to be published.
        base: the version that was current when it was made, or None.
        activate: whether it is to become current.

    Returns:
        Whether it is published now. False when it never got its name, or when another version became current since.

    Raises:
        StorageError: another process is building this index, or the disk refuses.
        PlaceIndexError: the version is damaged.
    """
    index_folder = indexes / check_index_name(name)
    if version not in published_versions(index_folder):
        return False
    with storage_errors(index_folder), _exclusive(index_folder):
        current = current_version_or_none(index_folder)
        if not activate or current == version:
            return True
        if current != base:
            return False
        PlaceIndex.open(index_folder / VERSIONS_NAME / version)
        replace_file(index_folder / CURRENT_NAME, f"{version}\n".encode())
    return True


def remove_old_versions(index_folder: Path, keep: int) -> str | None:
    """Prune after a version became current, which it is whatever becomes of the old ones.

    Returns:
        Why they could not be removed, or None. The next build tries again.
    """
    try:
        prune(index_folder, keep)
    except (OSError, SightfixError) as error:
        return str(error)
    return None


def check_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise StorageError when the disk has less room than the build will need."""
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise StorageError(
            f"the index needs about {needed_bytes / 1e6:.1f} MB, the disk has {free / 1e6:.1f} MB free",
            where=str(existing),
            remedy="Free some space or choose another folder (--indexes); nothing was published",
        )


@contextlib.contextmanager
def _exclusive(index_folder: Path) -> Iterator[None]:
    """Hold the index's build lock. The kernel releases it with the process, however that ends."""
    lock = FileLock(index_folder / _LOCK_NAME)
    while not lock.is_locked:
        try:
            (index_folder / VERSIONS_NAME).mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except FileNotFoundError:  # a first build that failed removed its folder at this moment
            continue
        except Timeout:
            if not (index_folder / _LOCK_NAME).exists():  # or only its lock
                continue
            raise StorageError(
                "another process is building this index",
                where=str(index_folder),
                remedy="Wait for it, or stop it",
                code="build_in_progress",
            ) from None
    try:
        yield
    finally:
        lock.release()


def _remove_leftovers(index_folder: Path) -> None:
    """Remove the drafts of killed builds. A version that was named but not made current is whole; it ages as others."""
    for leftover in (index_folder / VERSIONS_NAME).glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    (index_folder / f".{CURRENT_NAME}.tmp").unlink(missing_ok=True)


def _remove_unpublished(draft: VersionDraft) -> None:
    """Remove the draft, named or not, unless it became current or was not meant to."""
    named = draft.published_folder
    with contextlib.suppress(OSError):
        if named.is_dir() and draft.activate and not _is_current(draft):
            # Renamed first: a reader finds the version whole or not at all.
            named.rename(draft.folder)
    shutil.rmtree(draft.folder, ignore_errors=True)


def _is_current(draft: VersionDraft) -> bool:
    try:
        return (draft.index_folder / CURRENT_NAME).read_text(encoding="utf-8").strip() == draft.version
    except FileNotFoundError:
        return False
    except OSError:
        # Unknown (no file handle left, say): never remove what may be current.
        return True


def _remove_if_nothing_published(index_folder: Path) -> None:
    """Remove the empty folders of an index that never was; a folder that holds anything else stays as it is."""
    with contextlib.suppress(OSError):
        if published_versions(index_folder) or (index_folder / CURRENT_NAME).exists():
            return
        if (index_folder / WORK_NAME).exists():  # a build that is to go on: an index with nothing in it yet
            return
        # Nothing that the lock guards is touched once it is gone: another build may hold the next one.
        with contextlib.suppress(OSError):
            (index_folder / VERSIONS_NAME).rmdir()
        (index_folder / _LOCK_NAME).unlink(missing_ok=True)
        index_folder.rmdir()


def _new_version_name() -> str:
    """Time and a random part, such as 2026-11-22T10-00-00.123Z-ab12cd: sorts by age, never repeats."""
    now = datetime.now(UTC)
    return f"{now:%Y-%m-%dT%H-%M-%S}.{now.microsecond // 1000:03d}Z-{secrets.token_hex(3)}"
