"""Photos that are the same file, byte by byte."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from retrieval.references.reference import Reference, SkippedPhoto

_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class IdenticalFiles:
    """Groups of ids whose files are equal, the largest group first; and the files that could not be read."""

    groups: tuple[tuple[str, ...], ...]
    unreadable: tuple[SkippedPhoto, ...]


def find_identical_files(
    references: Iterable[Reference], on_progress: Callable[[int], None] | None = None
) -> IdenticalFiles:
    """Compare the files of references; only files of one size are read.

    Args:
        references: id and path of each are kept in memory.
        on_progress: called with the number of files dealt with.
    """
    by_size: defaultdict[int, list[Reference]] = defaultdict(list)
    unreadable: list[SkippedPhoto] = []
    for reference in references:
        try:
            by_size[reference.path.stat().st_size].append(reference)
        except OSError as error:
            unreadable.append(_unreadable(reference.path, error))
    groups: list[tuple[str, ...]] = []
    for same_size in by_size.values():
        by_digest: defaultdict[bytes, list[str]] = defaultdict(list)
        for reference in same_size if len(same_size) > 1 else ():
            try:
                by_digest[_digest(reference.path)].append(reference.id)
            except OSError as error:
                unreadable.append(_unreadable(reference.path, error))
        groups += [tuple(ids) for ids in by_digest.values() if len(ids) > 1]
        if on_progress:
            on_progress(len(same_size))
    return IdenticalFiles(tuple(sorted(groups, key=lambda ids: (-len(ids), ids))), tuple(unreadable))


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()


def _unreadable(path: Path, error: OSError) -> SkippedPhoto:
    return SkippedPhoto(path, f"the file cannot be read ({error.strerror})")
