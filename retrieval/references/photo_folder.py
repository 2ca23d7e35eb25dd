"""The photos below a folder, in an order that does not change."""

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from retrieval.images import FILE_SUFFIXES
from retrieval.references.reference import SkippedPhoto

# Photos by their suffix, but of formats that `retrieval.images` does not decode.
FOREIGN_SUFFIXES: Final[frozenset[str]] = frozenset(
    {".tif", ".tiff", ".bmp", ".gif", ".avif", ".jxl", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
)
_PHOTO_SUFFIXES: Final = FILE_SUFFIXES | FOREIGN_SUFFIXES


def walk_photos(root: Path, skipped: list[SkippedPhoto] | None = None) -> Iterator[Path]:
    """Yield the photos below a folder: those of a folder by name, then its subfolders by name.

    Links to folders are followed, each folder once. Names that start with a dot (``.thumbnails``, ``._IMG_1.jpg``) are
    passed over, as are files that are no photos.

    Args:
        root: the folder.
        skipped: gets the photos and folders that cannot be read, with the reason.
    """
    out = skipped if skipped is not None else []
    seen: set[tuple[int, int]] = set()

    def unreadable(error: OSError) -> None:
        out.append(SkippedPhoto(Path(error.filename), f"the folder cannot be read ({error.strerror})"))

    for folder, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in sorted(names):
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - this line runs for every file of a folder
            if name.startswith(".") or suffix not in _PHOTO_SUFFIXES:
                continue
            path = Path(folder, name)
            reason = _refusal(path, suffix)
            if reason is None:
                yield path
            else:
                out.append(SkippedPhoto(path, reason))


def _refusal(path: Path, suffix: str) -> str | None:
    if suffix in FOREIGN_SUFFIXES:
        return f"{suffix} photos are not read; convert it to JPEG, PNG, WebP or HEIC"
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    with contextlib.suppress(OSError):  # a link that leads nowhere is told when the photo is read
        if not stat.S_ISREG(path.stat().st_mode):  # whoever reads a pipe may wait for its writer for ever
            return "it is no file, but a pipe, a socket or a device"
    return None


def relative_id(path: Path, root: Path) -> str:
    """The path below the root with ``/``: the id of a photo that has no other."""
    return path.relative_to(root).as_posix()


def subfolder_session(path: Path, root: Path) -> str | None:
    """The folder of a photo below the root with ``/``, or None in the root itself."""
    folder = path.parent.relative_to(root).as_posix()
    return None if folder == "." else folder


def count_reasons(skipped: list[SkippedPhoto]) -> str:
    """How many photos were left out for which reason, the most frequent first: ``no GPS position (10); … (2)``."""
    counts: dict[str, int] = {}
    for photo in skipped:
        counts[photo.reason] = counts.get(photo.reason, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shown = [f"{reason} ({count})" for reason, count in ordered[:3]]
    return "; ".join(shown) + ("; …" if len(ordered) > 3 else "")
