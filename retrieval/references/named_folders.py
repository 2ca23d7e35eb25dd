"""Folders of photos whose file names carry the position: UTM names, and the frame numbers of Nordland.

UTM names, ``@UTM_east@UTM_north@zone@letter@lat@lon@…@.jpg``, are the format of VPR-datasets-downloader (Berton et al.,
Deep Visual Geo-localization Benchmark, CVPR 2022), in which Pitts30k, Tokyo 24/7, MSLS, San Francisco, St Lucia, SVOX
and others are kept. Any field after north may be empty.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, ClassVar, Final, Self

from pydantic import BeforeValidator, Field

from retrieval.errors import ParameterError, ReferenceDataError
from retrieval.geo import Position, utm_to_wgs84
from retrieval.references.reader import (
    FolderReader,
    ReaderOptions,
    UnusablePhotoError,
    no_such,
    relative_id,
    subfolder_session,
)
from retrieval.references.reference import Reference

_FIELDS: Final = (
    "east",
    "north",
    "zone",
    "letter",
    "lat",
    "lon",
    "pano_id",
    "tile_num",
    "heading",
    "pitch",
    "roll",
    "height",
    "timestamp",
    "note",
)

_METADATA: Final = ("pano_id", "tile_num", "pitch", "roll", "height", "timestamp", "note")
_ZONE: Final = re.compile(r"(\d{1,2})([NS])", re.IGNORECASE)
_FRAME_NUMBER: Final = re.compile(r"\d+")

# Frames within the tolerance are made to lie within this distance.
_RADIUS_M: Final = 25.0

_DAY: Final = re.compile(r"(\d{4})-?(\d\d)-?(\d\d)(?:[_T ](\d\d):?(\d\d)?:?(\d\d)?)?")


@dataclass(frozen=True, slots=True)
class UtmName:
    """What a file name says.

    Attributes:
        east, north: metres in the plane of the data set, UTM where there is a zone.
        zone: UTM zone, 1 to 60, or None.
        southern: hemisphere of the zone; None where the name does not say.
        position: as written, or None.
        heading_deg: in [0, 360), or None.
        captured_at: where at least the day is given.
        metadata: the further fields that are not empty, as text.
    """

    east: float
    north: float
    zone: int | None
    southern: bool | None
    position: Position | None
    heading_deg: float | None
    captured_at: datetime | None
    metadata: Mapping[str, str]

    @classmethod
    def parse(cls, name: str) -> Self:
        """Read the name of a file, with or without its suffix.

        Raises:
            UnusablePhotoError: it does not start with @east@north, or a number in it is none.
        """
        parts = name.split("@")
        if len(parts) < 4 or parts[0]:
            raise UnusablePhotoError("its name is not of the form @UTM_east@UTM_north@…@.jpg")
        texts = dict(zip(_FIELDS, parts[1:-1], strict=False))  # the last part is the suffix
        east, north = _number(texts, "east"), _number(texts, "north")
        if east is None or north is None:
            raise UnusablePhotoError("its name has no UTM_east or no UTM_north")
        letter = texts.get("letter", "").upper()
        heading = _number(texts, "heading")
        return cls(
            east=east,
            north=north,
            zone=_zone_in_name(texts),
            # The letter is a latitude band of 8 degrees, C to X: S lies north of the equator.
            southern=letter < "N" if letter else None,
            position=_position(texts),
            heading_deg=None if heading is None else heading % 360.0,
            captured_at=_captured_at(texts.get("timestamp", "")),
            metadata={field: text for field in _METADATA if (text := texts.get(field, ""))},
        )


def _number(texts: Mapping[str, str], field: str) -> float | None:
    text = texts.get(field, "")
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or "_" in text:
        raise UnusablePhotoError(f"the {field} in its name is not a number: '{text}'")
    return number


def _zone_in_name(texts: Mapping[str, str]) -> int | None:
    number = _number(texts, "zone")
    if number is None:
        return None
    if number not in range(1, 61):
        raise UnusablePhotoError(f"there is no UTM zone {number:g}")
    return int(number)


def _position(texts: Mapping[str, str]) -> Position | None:
    lat, lon = _number(texts, "lat"), _number(texts, "lon")
    if lat is None or lon is None:
        return None
    if not (-90.0 <= lat <= 90.0 and -180.0 <= lon <= 180.0):
        raise UnusablePhotoError(f"the position {lat:g}, {lon:g} in its name is outside the Earth")
    return Position(lat, lon)


def _captured_at(text: str) -> datetime | None:
    match = _DAY.fullmatch(text)
    if match is None:
        return None
    try:
        return datetime(*(int(part) for part in match.groups() if part is not None))  # type: ignore[arg-type]
    except ValueError:
        return None


def _zone_option(value: object) -> object:
    match = _ZONE.fullmatch(value) if isinstance(value, str) else None
    if isinstance(value, str) and (match is None or not 1 <= int(match[1]) <= 60):
        raise ParameterError(
            f"option zone={value} of the reader utm is not a UTM zone",
            remedy="Give the number and the hemisphere, N or S, such as zone=33N",
        )
    return (int(match[1]), match[2].upper() == "S") if match else value


class UtmOptions(ReaderOptions):
    """Options of `utm:`.

    Attributes:
        zone: UTM zone and hemisphere (N or S) of names that do not give them, such as ``33N``.
    """

    zone: Annotated[tuple[int, bool] | None, BeforeValidator(_zone_option)] = None


class UtmFolder(FolderReader[UtmOptions]):
    """`utm:FOLDER`: photos named ``@UTM_east@UTM_north@zone@letter@lat@lon@…@.jpg``, subfolders included.

    `plane_m` is (east, north). The position is the latitude and longitude of the name; else it is worked out from the
    UTM zone of the name or of the options; else there is none. The session is the subfolder.

    Raises:
        ReferenceDataError: no such folder; when iterated: no photo with such a name.
    """

    kind: ClassVar[str] = "utm"
    options_type = UtmOptions
    nothing_remedy = unusable_remedy = "Give a folder of photos named @UTM_east@UTM_north@zone@letter@lat@lon@…@.jpg"

    def _reference(self, path: Path) -> Reference:
        name = UtmName.parse(path.name)
        return Reference(
            id=relative_id(path, self.root),
            path=path,
            position=name.position or self._from_utm(name),
            plane_m=(name.east, name.north),
            heading_deg=name.heading_deg,
            captured_at=name.captured_at,
            session=subfolder_session(path, self.root),
            metadata=name.metadata,
        )

    def _from_utm(self, name: UtmName) -> Position | None:
        given_zone, given_southern = self.options.zone or (None, None)
        zone = name.zone if name.zone is not None else given_zone
        southern = name.southern if name.southern is not None else given_southern
        if zone is None or southern is None:
            return None
        lat, lon = (float(degrees) for degrees in utm_to_wgs84(name.east, name.north, zone, southern))
        if not (-90.0 <= lat <= 90.0 and -180.0 <= lon <= 180.0):
            raise UnusablePhotoError(f"there is no point {name.east:g} east, {name.north:g} north in UTM zone {zone}")
        return Position(lat, lon)


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


class NordlandFolder(FolderReader[NordlandOptions]):
    """`nordland:FOLDER`: photos of the train journey in four seasons, named by frame, or ``@0@north@…@.jpg``.

    There is no position, only `plane_m`: (0, frame · 25 / (tolerance + ½)), so that two frames lie within 25 m of each
    other if their numbers differ by at most `tolerance`. Names that start with @ are read as UTM names. The session
    is the subfolder (the season); the metadata hold the frame.

    Raises:
        ReferenceDataError: no such folder or list of names; when iterated: no photo with a frame number.
    """

    kind: ClassVar[str] = "nordland"
    options_type = NordlandOptions
    nothing_remedy = unusable_remedy = "Give a folder of photos named by their frame, such as summer/images-00001.png"

    def __init__(self, location: Path, options: NordlandOptions | None = None, spec: str | None = None) -> None:
        super().__init__(location, options, spec)
        names = self.options.names
        self._frames = None if names is None else _numbered(Path(names).expanduser())

    def _reference(self, path: Path) -> Reference:
        if path.name.startswith("@"):
            name = UtmName.parse(path.name)
            plane, frame = (name.east, name.north), name.metadata.get("pano_id", "")
        else:
            number = self._frame(path)
            plane, frame = (0.0, number * _RADIUS_M / (self.options.tolerance + 0.5)), str(number)
        return Reference(
            id=relative_id(path, self.root),
            path=path,
            position=None,
            plane_m=plane,
            session=subfolder_session(path, self.root),
            metadata={"frame": frame} if frame else {},
        )

    def _frame(self, path: Path) -> int:
        if self._frames is not None:
            if path.name not in self._frames:
                raise UnusablePhotoError("it is not in the list of names")
            return self._frames[path.name]
        numbers = _FRAME_NUMBER.findall(path.stem)
        if not numbers:
            raise UnusablePhotoError("its name has no frame number")
        return int(numbers[-1])


def _numbered(names: Path) -> dict[str, int]:
    try:
        lines = names.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise ReferenceDataError("the text is not UTF-8", where=str(names), remedy="Save the file as UTF-8") from None
    except OSError:
        raise no_such(names, "file") from None
    return {name: frame for frame, name in enumerate(sorted({line.strip() for line in lines if line.strip()}))}
