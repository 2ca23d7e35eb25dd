"""A folder of photos that carry their position in their EXIF, such as those of a phone."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from retrieval.errors import ImageError, ReferenceDataError
from retrieval.references.exif_block import read_exif
from retrieval.references.exif_gps import ExifRecord, NoExifPositionError, read_exif_record
from retrieval.references.photo_folder import count_reasons, relative_id, subfolder_session, walk_photos
from retrieval.references.reader import Reader, ReaderOptions, Row, check_folder
from retrieval.references.reference import Reference, SkippedPhoto


class ExifOptions(ReaderOptions):
    """Options of `exif:`; the common ones only."""


class ExifFolder(Reader[ExifOptions]):
    """`exif:FOLDER`: JPEG, PNG, WebP and HEIC photos, subfolders included.

    The session of a photo is its subfolder. Photos without a usable position are left out and stand in `skipped`. Only
    headers are read.

    Raises:
        ReferenceDataError: no such folder; when iterated: no photo in it, or none with a position.
    """

    kind: ClassVar[str] = "exif"

    def __init__(self, location: Path, options: ExifOptions | None = None, spec: str | None = None) -> None:
        check_folder(location)
        super().__init__(location, options or ExifOptions(), location, spec)

    def _read(self, skipped: list[SkippedPhoto]) -> Iterator[tuple[Row | None, Reference]]:
        for path in walk_photos(self.location, skipped):
            record = _record_or_reason(path)
            if isinstance(record, str):
                skipped.append(SkippedPhoto(path, record))
                continue
            yield (
                None,
                Reference(
                    id=relative_id(path, self.root),
                    path=path,
                    position=record.position,
                    altitude_m=record.altitude_m,
                    heading_deg=record.heading_deg,
                    captured_at=record.captured_at,
                    session=subfolder_session(path, self.root),
                    metadata=record.metadata,
                ),
            )

    def _count(self) -> int:
        return sum(1 for _ in walk_photos(self.location))

    def _nothing_read(self, skipped: list[SkippedPhoto]) -> ReferenceDataError:
        if not skipped:
            return ReferenceDataError(
                "there is no photo in this folder",
                where=str(self.location),
                remedy="Give a folder of JPEG, PNG, WebP or HEIC photos; subfolders are searched too",
            )
        return ReferenceDataError(
            f"none of {len(skipped)} photos can be placed: {count_reasons(skipped)}",
            where=str(self.location),
            remedy="Take photos with location switched on in the camera, copy them without an app that removes it, or "
            "list their positions in a CSV with the columns path, lat, lon",
        )


def _record_or_reason(path: Path) -> ExifRecord | str:
    try:
        with warnings.catch_warnings(record=True) as damage:
            warnings.simplefilter("always")  # Pillow warns of a damaged block, and reads of it what it can
            exif = read_exif(path)
        return read_exif_record(exif)
    except NoExifPositionError as error:
        return f"{error} (its EXIF is damaged)" if damage else str(error)
    except ImageError as error:
        return error.what
    except OSError as error:
        return f"the file cannot be read ({error.strerror})"
