"""Nordland: a train journey filmed in four seasons, where the number of a frame is the only position there is."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final

from pydantic import Field

from retrieval.errors import ReferenceDataError
from retrieval.references.at_name import AtName, AtNameError
from retrieval.references.photo_folder import count_reasons, relative_id, subfolder_session, walk_photos
from retrieval.references.reader import Reader, ReaderOptions, Row, check_folder, no_such
from retrieval.references.reference import Reference, SkippedPhoto

RADIUS_M: Final = 25.0
_NUMBER: Final = re.compile(r"\d+")


class NordlandOptions(ReaderOptions):
    """Options of `nordland:`.

    Attributes:
        tolerance: how many frames away still counts as the same place: 25 m are made to hold just so many. 10 in most
            papers, 1 in the subset of 2 760 queries.
        names: a text file of the file names to keep, one a line (cleanImageNames.txt). Frames are then numbered in the
            order of the names, as VPR-datasets-downloader does; without it the number in the name is the frame.
    """

    tolerance: int = Field(default=10, ge=0)
    names: str | None = None


class NordlandFolder(Reader[NordlandOptions]):
    """`nordland:FOLDER`: photos named by their frame, or with the dummy coordinates ``@0@north@…@.jpg``.

    There is no position, only `plane_m`: (0, frame · 25 / (tolerance + ½)), so that two frames lie within 25 m of each
    other if their numbers differ by at most `tolerance`. Names that start with @ are taken at their word. The session
    is the subfolder (the season); the metadata hold the frame.

    Raises:
        ReferenceDataError: no such folder or list of names; when iterated: no photo with a frame number.
    """

    kind: ClassVar[str] = "nordland"

    def __init__(self, location: Path, options: NordlandOptions | None = None, spec: str | None = None) -> None:
        check_folder(location)
        super().__init__(location, options or NordlandOptions(), location, spec)
        names = self.options.names
        self._frames = None if names is None else _numbered(Path(names).expanduser())

    def _read(self, skipped: list[SkippedPhoto]) -> Iterator[tuple[Row | None, Reference]]:
        metres_a_frame = RADIUS_M / (self.options.tolerance + 0.5)
        for path in walk_photos(self.location, skipped):
            try:
                if path.name.startswith("@"):
                    name = AtName.parse(path.name)
                    plane, frame = (name.east, name.north), name.metadata.get("pano_id", "")
                else:
                    number = self._frame(path)
                    plane, frame = (0.0, number * metres_a_frame), str(number)
            except AtNameError as error:
                skipped.append(SkippedPhoto(path, str(error)))
                continue
            yield (
                None,
                Reference(
                    id=relative_id(path, self.root),
                    path=path,
                    position=None,
                    plane_m=plane,
                    session=subfolder_session(path, self.root),
                    metadata={"frame": frame} if frame else {},
                ),
            )

    def _frame(self, path: Path) -> int:
        if self._frames is not None:
            if path.name not in self._frames:
                raise AtNameError("it is not in the list of names")
            return self._frames[path.name]
        numbers = _NUMBER.findall(path.stem)
        if not numbers:
            raise AtNameError("its name has no frame number")
        return int(numbers[-1])

    def _count(self) -> int:
        return sum(1 for _ in walk_photos(self.location))

    def _nothing_read(self, skipped: list[SkippedPhoto]) -> ReferenceDataError:
        found = f"none of {len(skipped)} photos can be used: {count_reasons(skipped)}"
        return ReferenceDataError(
            found if skipped else "there is no photo in this folder",
            where=str(self.location),
            remedy="Give a folder of photos named by their frame, such as summer/images-00001.png",
        )


def _numbered(names: Path) -> dict[str, int]:
    try:
        lines = names.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ReferenceDataError("the text is not UTF-8", where=str(names), remedy="Save the file as UTF-8") from None
    except OSError:
        raise no_such(names, "file") from None
    return {name: frame for frame, name in enumerate(sorted({line.strip() for line in lines if line.strip()}))}
