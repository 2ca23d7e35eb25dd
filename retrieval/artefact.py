"""Artefacts: directories with a manifest that names, sizes and hashes every file, written whole or not at all.

A writer fills a temporary sibling, writes the manifest last, flushes everything to the disk and renames. A reader
refuses an unknown format version, a missing file or a wrong hash, and says which file and what to do.
"""

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from retrieval import __version__
from retrieval.errors import ArtefactError, StorageError

MANIFEST_NAME: Final = "manifest.json"
SEAL_NAME: Final = "manifest.sha256"

# What the system says where a file cannot be linked.
_NO_LINK: Final = (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.ENOSYS)


class FileRecord(BaseModel):
    """What a manifest says about one file: its SHA-256 in hex and its size in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)


def _check_file_name(name: str) -> str:
    """A name that leads nowhere but below the artefact's folder."""
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise ValueError(f"{name!r} is no name of a file below the artefact's folder")
    return name


_FileName = Annotated[str, AfterValidator(_check_file_name)]


class Manifest(BaseModel):
    """What every artefact states about itself. Subclasses fix `kind` and the versions they read, and add fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    format_version: int
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    sightfix_version: str = __version__
    files: dict[_FileName, FileRecord]

    @classmethod
    def read(cls, folder: Path, error_type: type[ArtefactError] = ArtefactError) -> Self:
        """Read and check `folder/manifest.json`; the files it names are checked by `verify_files`.

        Raises:
            ArtefactError (as `error_type`): no manifest, not this kind, another format version, damaged.
        """
        path = folder / MANIFEST_NAME
        try:
            text = path.read_bytes()
        except OSError as error:
            raise error_type(
                f"there is no readable {MANIFEST_NAME} ({error.strerror})",
                where=str(folder),
                remedy=f"Give the folder of a {cls.model_fields['kind'].default}",
            ) from error
        manifest = cls.parse(text, str(path), error_type)
        _check_seal(folder, text, error_type)
        return manifest

    @classmethod
    def parse(cls, text: bytes, where: str, error_type: type[ArtefactError] = ArtefactError) -> Self:
        """Read a manifest that lies elsewhere than in a folder.

        Raises:
            ArtefactError (as `error_type`): not this kind, another format version, damaged.
        """
        try:
            head = _Head.model_validate_json(text)
            expected_kind = cls.model_fields["kind"].default
            readable = get_args(cls.model_fields["format_version"].annotation)
            if head.kind != expected_kind:
                raise error_type(f"this is a {head.kind}, not a {expected_kind}", where=where)
            if head.format_version not in readable:
                reads = " and ".join(", ".join(map(str, readable)).rsplit(", ", 1))
                raise error_type(
                    f"format version {head.format_version} is unknown to sightfix {__version__} (it reads {reads})",
                    where=where,
                    remedy=f"Install a matching sightfix, or make the {expected_kind} again with this one",
                )
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(str(part) for part in first["loc"]) or "the file"
            raise error_type(
                f"the manifest is damaged at {at} ({first['msg']})",
                where=where,
                remedy="Copy the artefact again from where it was made, or make it again",
            ) from error

    def write(self, folder: Path) -> None:
        """Write `folder/manifest.json` and, last, its own SHA-256 beside it; both flushed to the disk."""
        text = self.model_dump_json(indent=2).encode() + b"\n"
        write_flushed(folder / MANIFEST_NAME, text)
        write_flushed(folder / SEAL_NAME, hashlib.sha256(text).hexdigest().encode() + b"\n")


def _check_seal(folder: Path, text: bytes, error_type: type[ArtefactError]) -> None:
    """Compare a manifest with its seal: what it says of itself (bounds, provenance) is nowhere else."""
    path = folder / SEAL_NAME
    remedy = "Copy the artefact again from where it was made, or make it again"
    try:
        sealed = path.read_bytes()
    except OSError as error:
        raise error_type(f"the file cannot be read ({error.strerror})", where=str(path), remedy=remedy) from error
    if sealed != hashlib.sha256(text).hexdigest().encode() + b"\n":
        raise error_type(
            "the manifest is damaged: its SHA-256 is not the one beside it",
            where=str(folder / MANIFEST_NAME),
            remedy=remedy,
        )


class _Head(BaseModel):
    kind: str
    format_version: int


def kind_of(folder: Path) -> str | None:
    """What kind of artefact a folder says it is; None where it says nothing readable."""
    try:
        return _Head.model_validate_json((folder / MANIFEST_NAME).read_bytes()).kind
    except (OSError, ValidationError):
        return None


def verify_files(
    folder: Path,
    files: dict[str, FileRecord],
    *,
    names: Sequence[str] | None = None,
    error_type: type[ArtefactError] = ArtefactError,
    sizes_only: bool = False,
) -> None:
    """Compare files of an artefact with its manifest, byte by byte through SHA-256.

    Args:
        folder: the artefact.
        files: the manifest's records.
        names: check only these; all by default.
        error_type: what to raise.
        sizes_only: do not read the files.

    Raises:
        ArtefactError (as `error_type`): a file is missing, shorter or longer, or hashes differently.
    """
    remedy = "Copy the artefact again from where it was made, or make it again"
    for name in files if names is None else names:
        record, path = files[name], folder / name
        try:
            size = path.stat().st_size
            if size != record.size:
                raise error_type(
                    f"the file has {size} bytes, its manifest says {record.size}", where=str(path), remedy=remedy
                )
            digest = record.sha256 if sizes_only else hash_file(path)
        except OSError as error:
            raise error_type(f"the file cannot be read ({error.strerror})", where=str(path), remedy=remedy) from error
        if digest != record.sha256:
            raise error_type(
                f"the file is damaged: its SHA-256 is {digest[:12]}…, its manifest says {record.sha256[:12]}…",
                where=str(path),
                remedy=remedy,
            )


def record_files(folder: Path, names: Sequence[str]) -> dict[str, FileRecord]:
    """Hash and flush the named files of a folder that is being written."""
    records = {}
    for name in names:
        path = folder / name
        flush_to_disk(path)
        records[name] = FileRecord(sha256=hash_file(path), size=path.stat().st_size)
    return records


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_flushed(path: Path, data: bytes) -> None:
    """Write a file and flush it to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name, by a hard link; a copy where the disk has no links."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        shutil.copyfile(source, target)


def can_link(source: Path, folder: Path) -> bool:
    """Whether `link_or_copy` links a file into a folder; tried there, and taken back.

    Raises:
        OSError: the disk refuses.
    """
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as trial:
        try:
            os.link(source, Path(trial) / source.name)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
    return True


@contextlib.contextmanager
def new_file(final: Path) -> Iterator[Path]:
    """A file to write that replaces `final` in one step when the block succeeds, and disappears when it fails.

    Yields:
        its path, beside the final one.
    """
    temporary = final.with_name(f".{final.name}.tmp")
    try:
        yield temporary
        flush_to_disk(temporary)
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_to_disk(final.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new, never a part of it."""
    with new_file(path) as temporary:
        write_flushed(temporary, data)


def rename_into_place(temporary: Path, final: Path) -> None:
    """Flush a finished folder and give it its name in one step."""
    flush_to_disk(temporary)
    temporary.rename(final)
    flush_to_disk(final.parent)


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """A folder to write in that takes the place of `final` when the block succeeds, and disappears when it fails.

    A folder cannot be replaced in one step: one that is there steps aside, and comes back if anything fails.

    Args:
        final: may exist.

    Yields:
        an empty folder beside it.

    Raises:
        StorageError: the disk refuses; what was there is there still.
    """
    with storage_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{final.name}-", dir=final.parent))
        replaced = temporary.with_name(f"{temporary.name}-replaced")
        try:
            temporary.chmod(0o755)
            yield temporary
            if final.exists():
                final.rename(replaced)
            rename_into_place(temporary, final)
        finally:
            if replaced.exists() and not final.exists():
                replaced.rename(final)
            for leftover in (temporary, replaced):
                shutil.rmtree(leftover, ignore_errors=True)


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage_errors(where: Path) -> Iterator[None]:
    """Turn a disk that refuses (full, read-only, no permission) into a StorageError that says so."""
    remedies = {
        errno.ENOSPC: "Free some space or choose another folder, then run the command again; nothing was published",
        errno.EDQUOT: "Free some space or choose another folder, then run the command again; nothing was published",
        errno.EACCES: "Choose a folder you may write to",
        errno.EPERM: "Choose a folder you may write to",
        errno.EROFS: "Choose a folder on a writable disk",
        errno.ENOTDIR: "Choose another folder: a file has its name, or that of a folder above it",
        errno.EEXIST: "Choose another folder: a file has its name, or that of a folder above it",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in remedies:
            raise
        # The system's own words: pyarrow fills strerror with others.
        raise StorageError(
            f"writing failed ({os.strerror(error.errno)})", where=str(where), remedy=remedies[error.errno]
        ) from error
